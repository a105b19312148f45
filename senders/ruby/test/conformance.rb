# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause

# A server for tests/conformance, which says what it has to do.
require "tempfile"
require_relative "../lib/lingerd"

if ENV.key?("TLS_CERT")
  puts "lacks: a socket of OpenSSL's is not handed over"
  exit
end

# Writes what the kernel takes, and hands over the rest; whether it did.
def spooled?(sender, client, response)
  until response.empty?
    sent = client.sendmsg_nonblock(response, Socket::MSG_NOSIGNAL, exception: false)
    if sent != :wait_writable
      response = response.byteslice(sent..)
    elsif sender.may_spool?(1, client)
      Tempfile.create do |file|
        file.write(response)
        file.flush
        return true if sender.spool(client, [Lingerd::Part.new(file, 0, response.bytesize, true)])
      end
    end
  end
  false
end

def respond(sender, client)
  size = client.readpartial(65_536)[%r{\AGET /(\d+) }, 1].to_i
  response = "HTTP/1.1 200 OK\r\nContent-Length: #{size}\r\n\r\n#{"x" * size}"
  if ENV.key?("SPOOL")
    return client.close if spooled?(sender, client, response)
  else
    client.write(response)
  end
  return client.close if ENV.key?("LINGER_SECONDS") && sender.give(client, ENV["LINGER_SECONDS"].to_i)

  sender.finish(client)
rescue SystemCallError, IOError
  client.close
end

sender = Lingerd::Sender.new(ENV.fetch("LINGERD_SOCKET"))
listener = TCPServer.new("127.0.0.1", ENV.fetch("PORT").to_i)
if ENV.key?("THREADS")
  (ENV["THREADS"].to_i - 1).times { Thread.new { loop { respond(sender, listener.accept) } } }
elsif ENV.key?("PROCESSES")
  respond(sender, listener.accept)
  (ENV["PROCESSES"].to_i - 1).times { fork || break }
end
loop { respond(sender, listener.accept) }
