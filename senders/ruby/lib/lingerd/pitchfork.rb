# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause

# Has Pitchfork leave the lingering close, and what its clients are slow to read, to lingerd(8). In pitchfork.conf.rb:
#
#   require "lingerd/pitchfork"
#
# The environment variable LINGERD_SOCKET says where lingerd listens if it is not at Lingerd::SOCKET.
require "pitchfork"
require_relative "prefork"

Pitchfork::HttpServer.prepend(Lingerd::Prefork)
