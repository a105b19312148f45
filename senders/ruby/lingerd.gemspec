# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause

require_relative "lib/lingerd/version"

Gem::Specification.new do |spec|
  spec.name = "lingerd"
  spec.version = Lingerd::VERSION
  spec.authors = ["The lingerd project"]
  spec.summary = "Hands connections over to lingerd, which does their lingering close"
  spec.description = "A sender of lingerd(8) for servers in Ruby, and what has Unicorn and Pitchfork use it: " \
                     "a response is whole whatever the client still sends, and clients that read slowly keep no worker."
  # What it is about; the project's own is to be added with the release.
  spec.homepage = "https://www.rfc-editor.org/rfc/rfc9112#section-9.6"
  spec.license = "BSD-3-Clause"
  spec.required_ruby_version = ">= 3.1"
  spec.files = Dir.chdir(__dir__) { Dir["lib/**/*.rb", "README.md"] }
end
