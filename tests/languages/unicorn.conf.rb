# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause

require "lingerd/unicorn"

worker_processes Integer(ENV.fetch("PROCESSES", "1"))
timeout 600
