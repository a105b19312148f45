# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause

require "tempfile"
require_relative "../lingerd"

# What Unicorn and Pitchfork have in common: a process serves one client at a time, in process_client, which closes
# the connection. What closes it there is this.
#
# This must not know what a message to lingerd looks like.
module Lingerd
  # Stands before the methods of the server's class.
  module Prefork
    # How long to wait, in seconds, for lingerd and the client, before lingerd is tried to be reached again if it is
    # not there, or asked again if it did not take it.
    WAIT = 1

    # How much of a file is read for the socket at once, in bytes.
    PIECE = 65_536

    # A client that is being served. One that the application has taken (rack.hijack) is as any other socket.
    module Connection
      def served_by(server, sender)
        @server = server
        @lingerd = sender
      end

      def served
        @lingerd = nil
      end

      def lingerd
        @lingerd unless @lingerd.nil? || @server.taken?
      end

      # The server calls it just before close, which sees to it: to end receiving, too, would have the kernel reset
      # the connection at what the client still sends.
      def shutdown(how = Socket::SHUT_RDWR)
        super unless lingerd && how == Socket::SHUT_RDWR
      end

      def close
        sender = lingerd
        served
        return super unless sender

        sender.finish(self) { super() }
        nil
      end

      # Writes the last piece of a response: what the kernel takes; and what it does not is handed over.
      def write_last(data)
        data = data.b
        write_or_spool(0, data.bytesize, ->(at) { data.byteslice(at, data.bytesize) }) do |at|
          memory do |file|
            file.write(data.byteslice(at, data.bytesize))
            file.flush
            @lingerd.spool(self, [Part.new(file, 0, data.bytesize - at, true)])
          end
        end
      end

      # The same of a file, from its beginning.
      def write_file(file, size)
        write_or_spool(0, size, ->(at) { file.pread([PIECE, size - at].min, at) }) do |at|
          @lingerd.spool(self, [Part.new(file, at, size - at, false)])
        end
      end

      private

      def write_or_spool(at, size, piece)
        while at < size
          written = sendmsg_nonblock(piece.call(at), Socket::MSG_NOSIGNAL, exception: false)
          if written != :wait_writable
            at += written
          elsif @lingerd.may_spool?(WAIT, self)
            if yield(at)
              # Lingerd has it: what is left here is a copy.
              served
              close
              return
            end
            # It did not, and would not at once if it was asked again.
            wait_writable(WAIT)
          end
        end
      end

      # A file without a name, in memory where that can be had. Without room it is as if lingerd were not there.
      def memory(&block)
        file = begin
          File.open("/dev/shm", File::RDWR | File::TMPFILE, 0o600)
        rescue SystemCallError, NameError
          Tempfile.create.tap { |it| File.unlink(it) }
        end
        file.binmode
        block.call(file)
      rescue SystemCallError, IOError, ArgumentError # which Dir.tmpdir raises
        false
      ensure
        Lingerd.quietly_close(file) if file # which writes what could not be written once more
      end
    end

    # A body of which the last piece is written by write_last. What is longer than it said is cut off there, where the
    # client does not look any more either.
    Body = Struct.new(:body, :client, :left) do
      def each
        body.each do |piece|
          return if client.closed?

          self.left -= piece.bytesize
          left.positive? ? yield(piece) : client.write_last(piece)
        end
      end
    end

    def process_client(client, *)
      if (sender = Prefork.sender(logger)) && Lingerd.tcp?(client)
        client.extend(Connection)
        client.served_by(self, sender)
      end
      super
    ensure
      client.served if client.is_a?(Connection)
      Prefork.tell(logger) if sender
    end

    def http_response_write(client, status, headers, body, *rest)
      length = Prefork.length(headers) if client.is_a?(Connection) && body.respond_to?(:each)
      return super unless length

      file = Prefork.file(body, length)
      return super(client, status, headers, Body.new(body, client, length), *rest) unless file

      begin
        super(client, status, headers, [], *rest)
        client.write_file(file, length)
      ensure
        file.close
      end
    end

    # Whether the application has taken the connection that is being served.
    def taken?
      @request&.hijacked?
    end

    class << self
      # That of all workers, each of which has its links; nil if the path cannot be.
      def sender(logger)
        return @sender if defined?(@sender)

        @sender = Sender.new(ENV.fetch("LINGERD_SOCKET", "").then { |it| it.empty? ? SOCKET : it })
      rescue ArgumentError => e
        logger.error("lingerd: #{e.message}: workers close without it")
        @sender = nil
      end

      # Says in the log when lingerd is not to be had, and when it is again.
      def tell(logger)
        error = @sender.error
        return if error.nil? == !@alone

        @alone = !error.nil?
        if error
          logger.warn("lingerd: #{error.message}: closing without it")
        else
          logger.info("lingerd: at #{@sender.path} again")
        end
      end

      # How long a response is that has nothing to be done with its connection, but to be written.
      def length(headers)
        length = nil
        headers&.each do |name, value|
          return nil if name == "rack.hijack"

          length = Integer(value.to_s, 10, exception: false) if name.casecmp?("content-length")
        end
        length
      end

      # The file that all of the body is in, if it says that it is in one.
      def file(body, length)
        return unless body.respond_to?(:to_path) && (path = body.to_path)

        file = File.open(path, "rb")
        return file if file.stat.file? && file.size == length

        file.close
        nil
      rescue SystemCallError
        nil
      end
    end
  end
end
