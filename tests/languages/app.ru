# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause
# What Unicorn serves in the tests; it never reads a body.
require "rack/files"
require "tempfile"

def page(size)
  Array.new(size) { |n| ((n / 251) + n) & 255 }.pack("C*")
end

BIG = page(5_000_000)
PAGES = { "/big" => BIG, "/page" => page(20_000), "/pid" => Process.pid.to_s }.freeze
FILE = Tempfile.create
FILE.binmode
FILE.write(BIG)
FILE.flush
FILES = Rack::Files.new(File.dirname(FILE))

run(lambda do |env|
  case path = env["PATH_INFO"]
  when "/file" then FILES.call(env.merge("PATH_INFO" => "/#{File.basename(FILE)}"))
  when "/pieces" then [200, {}, BIG.each_char.each_slice(50_000).lazy.map(&:join)]
  when "/fails" then raise "on purpose"
  when "/hijacked"
    socket = env["rack.hijack"].call
    Thread.new do
      socket.write("HTTP/1.1 200 OK\r\nContent-Length: 20000\r\n\r\n#{PAGES["/page"]}")
      socket.close
    end
    [200, {}, []]
  else
    # A number is how many bytes tests/conformance wants.
    body = PAGES[path] || ("x" * Integer(path.delete_prefix("/"), 10))
    [200, { "Content-Length" => body.bytesize.to_s }, [body]]
  end
end)
