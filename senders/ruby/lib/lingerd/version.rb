# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause

module Lingerd
  VERSION = "0.1.0"
end
