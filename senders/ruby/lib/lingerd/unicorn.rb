# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause

# Has Unicorn leave the lingering close, and what its clients are slow to read, to lingerd(8). In unicorn.rb:
#
#   require "lingerd/unicorn"
#
# The environment variable LINGERD_SOCKET says where lingerd listens if it is not at Lingerd::SOCKET.
require "unicorn"
require_relative "prefork"

Unicorn::HttpServer.prepend(Lingerd::Prefork)
