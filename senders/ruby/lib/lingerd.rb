# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause

# Hands connections over to lingerd(8), for a server in Ruby.
#
# A server that has written its response, and closes, has to wait until its client has closed too; else a late byte
# of the client has the kernel reset the connection, and what the client has not read yet of the response is lost
# (RFC 9112, section 9.6). With this it passes the socket to lingerd, which waits:
#
#   sender = Lingerd::Sender.new
#   ...
#   sender.finish(client)     # in the place of client.close
#
# For Unicorn there is lingerd/unicorn, for Pitchfork lingerd/pitchfork.
module Lingerd
  # Where lingerd listens unless it is told otherwise.
  SOCKET = "/var/run/lingerd/lingerd.sock"
end

require_relative "lingerd/version"
require_relative "lingerd/closing"
require_relative "lingerd/sender"
