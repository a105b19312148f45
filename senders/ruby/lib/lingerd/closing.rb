# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause

require "socket"

# How a connection ends at this side: the half-close, and what a server does without lingerd.
#
# This must not know how lingerd is reached.
module Lingerd
  # What Ruby cannot half-close, or look at, as it is closed or the client has gone.
  GONE = [SystemCallError, IOError].freeze
  private_constant :GONE

  class << self
    # Whether it is open, and of a kind that lingerd takes. TLS is not.
    def tcp?(socket)
      return false unless socket.is_a?(BasicSocket) && !socket.closed?

      address = socket.local_address
      address.ip? && address.socktype == Socket::SOCK_STREAM
    rescue *GONE
      false
    end

    # Has the kernel have what Ruby itself still keeps of what was written, of a socket or a file; whether it took it.
    # Waits as a write does.
    def flush(io)
      io.flush
      true
    rescue *GONE
      false
    end

    # Whether the client has nothing more to send, and nothing that it has sent is unread: then the socket can be
    # closed at once, and nobody lingers. Does not wait.
    def client_done?(socket)
      said = socket.recv_nonblock(1, Socket::MSG_PEEK, exception: false)
      said.nil? || said == ""
    rescue Errno::ECONNRESET
      true
    rescue *GONE
      false
    end

    # Half-closes a connection that is about to be handed over, and says whether its client is done.
    #
    # Elsewhere than on Linux lingerd does it: in the TCP of the BSDs a second time, by a server that has to linger
    # itself after all, would end receiving, too.
    def half_close(socket)
      socket.shutdown(Socket::SHUT_WR) if RUBY_PLATFORM.include?("linux")
      client_done?(socket)
    rescue Errno::ENOTCONN
      true
    rescue *GONE
      false
    end

    # Closes a connection as a server has to without lingerd: half-closes, and reads until the client closes, is
    # silent for +idle+ seconds, or +limit+ seconds are over.
    def lingering_close(socket, idle: 2, limit: 30)
      til = now + limit
      socket.flush
      socket.shutdown(Socket::SHUT_WR)
      loop do
        left = til - now
        break unless left.positive? && socket.wait_readable([idle, left].min)

        # recv would fail where what was read before came by lines, and Ruby keeps more.
        break if socket.read_nonblock(65_536, exception: false).nil?
      end
    rescue *GONE
      # The client has gone.
    ensure
      quietly_close(socket)
    end

    # close(2), of which no error matters any more.
    def quietly_close(socket)
      socket.close
    rescue *GONE
      # It is closed all the same.
    end

    private

    def now
      Process.clock_gettime(Process::CLOCK_MONOTONIC)
    end
  end
end
