# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause

require "io/wait"
require "socket"
require_relative "closing"

# The sender: what lingerd-protocol(7) has a server do.
#
# This must not know how long lingerd waits, for what, and what becomes of a socket, nor which server it is for.
module Lingerd
  # What is still to be written, of one file (an IO), from a byte of it on. +ours+ says that nobody else has use for
  # the file, so that lingerd may give back the room that it takes up while it is sent.
  Part = Struct.new(:file, :offset, :length, :ours)

  # A connection to one of lingerd's sockets, for one process at a time.
  class Link
    # The link is good, and what is queued in it will be read.
    NOT_NOW = [
      Errno::EAGAIN, Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM, Errno::EINTR, Errno::ETOOMANYREFS
    ].freeze

    SEND_FLAGS = Socket.const_defined?(:MSG_NOSIGNAL) ? Socket::MSG_NOSIGNAL : 0

    # Why there is no link, or nil.
    attr_reader :error

    def initialize(path)
      @path = path
      @address = Socket.sockaddr_un(path)
      forget
    end

    # Whether lingerd has it now. A link that turns out to be dead most likely means that lingerd was started anew:
    # then once more, on a new one.
    def send(message, sockets, spooled: false)
      @lock.synchronize do
        2.times do
          link = open
          return false unless link && (!spooled || go_ahead?(link))

          rights = Socket::AncillaryData.unix_rights(*sockets)
          begin
            case link.sendmsg_nonblock(message, SEND_FLAGS, nil, rights, exception: false)
            when :wait_writable then return false
            when message.bytesize
              @may_spool = false if spooled
              return true
            end
            drop(Errno::EPIPE.new(@path)) # a part of it has gone
          rescue *NOT_NOW
            return false
          rescue SystemCallError, IOError => e
            drop(e)
          end
        end
        false
      end
    end

    # Whether lingerd takes a response now, or within so many seconds, and before there is room to write to that
    # socket.
    def go_ahead(seconds, room)
      til = now + seconds
      loop do
        link, yes = @lock.synchronize { [(opened = open), opened && go_ahead?(opened)] }
        return true if yes

        # One that was not there, or has just been dropped, is not to be waited for.
        link = nil unless link && !link.closed?
        left = til - now
        return false if left <= 0 || !(link || room)

        # If another thread drops the link meanwhile, this looks in vain.
        ready = IO.select([link].compact, [room].compact, nil, left)
        return false if ready.nil? || !ready[1].empty?
      rescue IOError, SystemCallError
        return false
      end
    end

    def close
      @lock.synchronize { drop(Errno::ENOTCONN.new(@path)) if @link }
    end

    # For a child of fork(2), which is to have a link of its own: the parent's goes with its copy. Who closes all
    # descriptors after fork(2), as daemons do, may have something else by that number, which stays.
    def left
      return unless @link

      identity(@link) == @identity ? Lingerd.quietly_close(@link) : @link.autoclose = false
    rescue *GONE
      @link.autoclose = false unless @link.closed?
    end

    private

    def forget
      @lock = Mutex.new
      @link = @identity = @tried = @error = nil
      @connected = @may_spool = false
    end

    # The link, if there is one; tries to make one once a second at most. With the lock held.
    def open
      return @link if @connected

      unless @link
        return if @tried && now - @tried < 1

        @tried = now
        @link = Socket.new(:UNIX, :STREAM)
        @identity = identity(@link)
      end
      return if @link.connect_nonblock(@address, exception: false) == :wait_writable

      @connected = true
      @error = nil
      @link
    rescue Errno::EALREADY
      nil
    rescue SystemCallError, IOError => e
      drop(e)
      nil
    end

    # Which file it is.
    def identity(link)
      stat = link.stat
      [stat.dev, stat.ino]
    end

    # With the lock held; takes note of what lingerd has said.
    def go_ahead?(link)
      return true if @may_spool

      case said = link.recv_nonblock(64, exception: false)
      when :wait_readable then return false
      when nil, "" then drop(Errno::EPIPE.new(@path))
      else @may_spool = said.include?("G")
      end
      @may_spool
    rescue *NOT_NOW
      false
    rescue SystemCallError, IOError => e
      drop(e)
      false
    end

    def drop(error)
      Lingerd.quietly_close(@link) if @link
      @link = nil
      @connected = @may_spool = false
      @error = error
    end

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
  private_constant :Link

  # Hands connections over to the lingerd that listens at +path+.
  #
  # One serves a whole process, with all its threads; a child of fork(2) may use it, and has links of its own then.
  # Links are opened when they are needed first; when there is none, one is tried for once a second at most.
  #
  # give and spool never wait for lingerd: what it does not take at once is the caller's to do, as if there were no
  # lingerd.
  class Sender
    MOST_PARTS = 4

    # On macOS SO_LINGER counts in hundredths of a second.
    SO_LINGER = RUBY_PLATFORM.include?("darwin") ? 0x1080 : Socket::SO_LINGER
    private_constant :MOST_PARTS, :SO_LINGER

    attr_reader :path

    # Raises ArgumentError for a path that no socket can have.
    def initialize(path = SOCKET)
      @path = String(path)
      raise ArgumentError, "no socket can have an empty path" if @path.empty?

      # Each process has its own links, so that none is needed of which another thread held the lock at fork(2).
      @links = {}
      links
    end

    # Why there is no link to hand over on; nil if there is one, or none was needed yet.
    def error
      links[0].error
    end

    # Hands over a connection on which all is written: lingerd half-closes it, if the caller has not, and lingers.
    #
    # True: lingerd has it, and the caller closes its own copy, with close and without shutdown. False: the caller has
    # it to itself, and lingers. Is of TCP, else the answer is false.
    #
    # +seconds+, at least 1, is for one that is not worth more: lingerd ends it then, whatever its client does.
    def give(socket, seconds = nil)
      raise ArgumentError, "seconds must be at least 1" if seconds && seconds < 1
      return false unless Lingerd.tcp?(socket) && Lingerd.flush(socket)
      return links[0].send("L", [socket]) unless seconds

      with_linger(socket, seconds) { links[0].send("L", [socket]) }
    end

    # Ends a connection on which all is written: what a server calls in the place of its own close. Half-closes, and
    # hands over, unless the client has closed already; then the socket is closed.
    #
    # If lingerd does not take it the block is called, with the socket, which closes it as the server would; without
    # one it is Lingerd.lingering_close, which waits. Returns whether that was not needed.
    def finish(socket)
      if Lingerd.tcp?(socket) && Lingerd.flush(socket) &&
         (Lingerd.half_close(socket) || links[0].send("L", [socket]))
        Lingerd.quietly_close(socket)
        return true
      end
      block_given? ? yield(socket) : Lingerd.lingering_close(socket)
      false
    end

    # Whether lingerd takes a response now, with spool; or within so many seconds. A moment is well spent: one that
    # was just given a response, or has just been connected to, says so in a moment.
    #
    # With +room+, the socket of a client, it does not wait longer than until that can be written to; and as long as
    # that if lingerd is not there.
    def may_spool?(wait = 0, room = nil)
      links[1].go_ahead(wait, room)
    end

    # Hands over a connection on which 1 to 4 parts of files are still to be written, in their order. lingerd writes
    # them, and then does as with give; it resets the connection if that does not get on for +patience+ seconds.
    #
    # The connection is not half-closed. True: lingerd has it, and the caller closes its own copy. False: the caller
    # has it to itself, and writes.
    def spool(socket, parts, patience = 300)
      raise ArgumentError, "there are 1 to #{MOST_PARTS} parts" unless parts.size.between?(1, MOST_PARTS)

      milliseconds = [(patience * 1000).to_i, 0x7fffffff].min
      raise ArgumentError, "patience must be more than 0" if milliseconds < 1
      if parts.any? { |part| part.offset.negative? || part.length.negative? }
        raise ArgumentError, "a part has no negative offset or length"
      end
      return false unless Lingerd.tcp?(socket) && may_spool?
      return false unless [socket, *parts.map(&:file)].all? { |io| Lingerd.flush(io) }

      flags = parts.each_with_index.sum { |part, n| part.ours ? 1 << n : 0 }
      numbers = parts.flat_map { |part| [part.offset, part.length] }
      numbers.fill(0, numbers.size...(2 * MOST_PARTS))
      head = ["S", parts.size, flags, milliseconds, *numbers].pack("aCS>L>Q>8")
      # Whoever closes it last resets it from here on, if lingerd is killed before it has read this: the client might
      # take for the end what is none.
      with_linger(socket, 0) { links[1].send(head, [socket, *parts.map(&:file)], spooled: true) }
    end

    # Closes the links. One that is needed again is opened again.
    def close
      links.each(&:close)
    end

    private

    # The two of this process.
    def links
      pid = Process.pid
      @links[pid] || begin
        mine = [Link.new(@path), Link.new("#{@path}.2")]
        # Not those of another thread that was here first, too.
        of_others = @links.except(pid).values.flatten
        @links = { pid => mine }
        of_others.each(&:left)
        @links[pid]
      end
    end

    # With SO_LINGER set for so many seconds, and off again unless lingerd has it.
    def with_linger(socket, seconds)
      linger(socket, 1, seconds)
      given = yield
    ensure
      linger(socket, 0, 0) unless given
    end

    def linger(socket, on, seconds)
      socket.setsockopt(Socket::SOL_SOCKET, SO_LINGER, [on, seconds].pack("ii"))
    rescue SystemCallError
      # The client has gone.
    end
  end
end
