# frozen_string_literal: true

# SPDX-License-Identifier: BSD-3-Clause

# The sender before a listener that reads what lingerd would, and a clock that stands still until a test moves it.
#
# tests/languages has it in real servers, and tests/conformance in one of its own, before the real lingerd.

require "minitest/autorun"
require "minitest/mock"
require "socket"
require "tempfile"
require "tmpdir"
require_relative "../lib/lingerd"
require_relative "../lib/lingerd/prefork"

class TestCase < Minitest::Test
  def setup
    @directory = Dir.mktmpdir
    @path = File.join(@directory, "lingerd.sock")
    @sender = Lingerd::Sender.new(@path)
    @open = []
  end

  def teardown
    @sender.close
    @open.each { |each| each.close unless each.closed? }
    FileUtils.remove_entry(@directory)
  end

  def keep(socket)
    @open << socket
    socket
  end

  def listen(path = @path, backlog: 128)
    listener = keep(Socket.new(:UNIX, :STREAM))
    listener.bind(Socket.sockaddr_un(path))
    listener.listen(backlog)
    listener
  end

  # The client's end and the server's of a TCP connection.
  def connection
    listener = TCPServer.new("127.0.0.1", 0)
    client = keep(TCPSocket.new("127.0.0.1", listener.local_address.ip_port))
    [client, keep(listener.accept)]
  ensure
    listener.close
  end

  # A message, and the sockets and files that came with it.
  def received(link, size = 1)
    message, _, _, *control = link.recvmsg(size, 0, 4096, scm_rights: true)
    descriptors = control.flat_map { |each| each.unix_rights || [] }
    descriptors.each { |each| keep(each) }
    [message, descriptors]
  end

  # Runs the block with the clock so many seconds later than it is.
  def later(seconds, &block)
    now = Process.clock_gettime(Process::CLOCK_MONOTONIC) + seconds
    Process.stub(:clock_gettime, now, &block)
  end
end

class Give < TestCase
  def test_a_socket_goes_with_an_l_and_one_link_serves_all
    listener = listen
    sockets = [connection[1], connection[1]]
    sockets.each { |socket| assert @sender.give(socket) }
    link = keep(listener.accept[0])
    sockets.each do |socket|
      message, descriptors = received(link)
      assert_equal ["L", 1], [message, descriptors.size]
      assert_equal socket.stat.ino, descriptors[0].stat.ino
    end
    assert_nil @sender.error
  end

  def test_without_lingerd_one_link_is_tried_for_in_a_second
    server = connection[1]
    refute @sender.give(server)
    assert_kind_of Errno::ENOENT, @sender.error
    listener = listen
    later(0.5) { refute @sender.give(server) }
    later(1.1) { assert @sender.give(server) }
    assert_equal "L", received(keep(listener.accept[0]))[0]
  end

  def test_what_goes_down_with_a_link_goes_by_the_next_one
    listener = listen
    server = connection[1]
    assert @sender.give(server)
    listener.accept[0].close
    later(1.1) { assert @sender.give(server) }
    link = keep(listener.accept[0])
    assert_equal server.stat.ino, received(link)[1][0].stat.ino
    # But not twice in one second.
    link.close
    later(1.2) { refute @sender.give(server) }
    refute_nil @sender.error
  end

  def test_a_link_that_was_closed_by_somebody_else_is_a_dead_one
    listener = listen
    server = connection[1]
    assert @sender.give(server)
    @sender.send(:links)[0].instance_variable_get(:@link).close
    refute @sender.give(server)
    later(1.1) { assert @sender.give(server) }
    2.times { assert_equal "L", received(keep(listener.accept[0]))[0] }
  end

  def test_one_who_does_not_read_holds_nobody_up_and_the_link_is_kept
    listener = listen
    server = connection[1]
    given = 0
    given += 1 while @sender.give(server)
    link = keep(listener.accept[0])
    given.times { assert_equal "L", received(link)[0] }
    assert @sender.give(server)
    assert_equal "L", received(link)[0]
  end

  def test_a_child_has_a_link_of_its_own_and_leaves_its_parent_s_alone
    listener = listen
    server = connection[1]
    assert @sender.give(server)
    first = keep(listener.accept[0])
    child = fork { exit!(@sender.give(server)) }
    assert Process.wait2(child)[1].success?
    second = keep(listener.accept[0])
    assert_equal "L", received(second)[0]
    received(first)
    assert @sender.give(server)
    assert_equal "L", received(first)[0]
  end

  def test_what_a_child_has_in_the_place_of_the_link_is_left_alone
    listener = listen
    server = connection[1]
    assert @sender.give(server)
    received(keep(listener.accept[0]))
    link = @sender.send(:links)[0].instance_variable_get(:@link)
    child = fork do
      other = IO.for_fd(link.fileno, autoclose: false)
      other.reopen(File.open(File::NULL))
      inode = other.stat.ino
      given = @sender.give(server)
      exit!(given && other.stat.ino == inode)
    end
    assert Process.wait2(child)[1].success?
    assert_equal "L", received(keep(listener.accept[0]))[0]
  end

  def test_what_lingerd_does_not_take_is_not_sent
    listen
    pair = UNIXSocket.pair.each { |each| keep(each) }
    closed = connection[1].tap(&:close)
    [pair[0], closed, $stderr].each { |each| refute @sender.give(each) }
    assert_nil @sender.error
  end

  def test_one_that_is_not_worth_more_time_says_so
    listener = listen
    server = connection[1]
    assert @sender.give(server, 2)
    linger = received(keep(listener.accept[0]))[1][0].getsockopt(:SOCKET, :LINGER).linger
    assert_equal [true, 2], linger
    listener.close
    File.unlink(@path)
    @sender.close
    refute @sender.give(server, 2)
    refute server.getsockopt(:SOCKET, :LINGER).linger[0]
    assert_raises(ArgumentError) { @sender.give(server, 0) }
  end

  def test_a_path_that_cannot_be_is_said_at_once
    ["", "/#{"x" * 200}"].each { |path| assert_raises(ArgumentError) { Lingerd::Sender.new(path) } }
  end
end

class Finish < TestCase
  def test_it_half_closes_and_lets_go
    listener = listen
    client, server = connection
    assert @sender.finish(server)
    assert server.closed?
    descriptor = received(keep(listener.accept[0]))[1][0]
    assert_equal "", client.read
    client.write("late")
    client.close
    assert_equal "late", descriptor.read
  end

  def test_what_ruby_still_keeps_is_written_first
    listener = listen
    %i[finish give].each do |method|
      client, server = connection
      server.sync = false
      server.write("hello")
      assert @sender.public_send(method, server)
      keep(listener.accept[0]) if method == :finish
      assert_equal "hello", client.readpartial(10)
    end
    # Without lingerd, too.
    client, server = connection
    server.sync = false
    server.write("hello")
    client.shutdown(Socket::SHUT_WR)
    Lingerd.lingering_close(server)
    assert_equal "hello", client.read
  end

  def test_what_cannot_be_written_is_not_handed_over
    listener = listen
    client, server = connection
    server.sync = false
    server.write("hello")
    server.shutdown(Socket::SHUT_WR)
    refute(@sender.finish(server) { |socket| Lingerd.quietly_close(socket) })
    assert_equal :wait_readable, listener.accept_nonblock(exception: false)
    assert_equal "", client.read
  end

  def test_nobody_lingers_on_a_client_that_is_done
    listener = listen
    client, server = connection
    client.close
    server.wait_readable
    assert @sender.finish(server)
    assert_equal :wait_readable, listener.accept_nonblock(exception: false)
  end

  def test_what_lingerd_does_not_take_is_closed_as_the_caller_says
    server = connection[1]
    refute(@sender.finish(server) { |socket| assert_same server, socket })
    refute server.closed?
  end

  def test_without_a_word_it_lingers_itself
    client, server = connection
    waiting = Thread.new { @sender.finish(server) }
    assert_equal "", client.read
    client.write("late")
    client.close
    refute waiting.value
    assert server.closed?
  end
end

class Lingering < TestCase
  def test_what_ruby_has_read_and_keeps_is_no_end
    client, server = connection
    client.write("line\nmore")
    assert_equal "line\n", server.gets
    waiting = Thread.new { Lingerd.lingering_close(server) }
    assert_equal "", client.read
    # More than any system keeps for who does not read it: it cannot be written before it is read.
    client.write("late" * 4_000_000)
    client.close_write
    waiting.join
    assert server.closed?
    assert_equal 0, client.getsockopt(:SOCKET, :ERROR).int
  end
end

class Spool < TestCase
  def setup
    super
    @listener = listen("#{@path}.2")
    @file = keep(Tempfile.create)
    @file.write("response")
    @file.flush
    File.unlink(@file)
  end

  def test_a_response_goes_when_lingerd_has_said_so
    server = connection[1]
    parts = [Lingerd::Part.new(@file, 2, 3, true), Lingerd::Part.new(@file, 0, 8)]
    refute @sender.spool(server, parts, 7)
    link = keep(@listener.accept[0])
    link.write("G")
    assert @sender.may_spool?(60)
    assert @sender.spool(server, parts, 7)
    head, descriptors = received(link, 72)
    assert_equal ["S", 2, 1, 7000, 2, 3, 0, 8, 0, 0, 0, 0], head.unpack("aCS>L>Q>8")
    assert_equal [server.stat.ino, @file.stat.ino, @file.stat.ino], descriptors.map { |each| each.stat.ino }
    assert_equal [true, 0], descriptors[0].getsockopt(:SOCKET, :LINGER).linger
    # One G is for one response.
    refute @sender.may_spool?
    refute @sender.spool(server, parts)
  end

  def test_a_file_is_all_there_when_it_goes
    server = connection[1]
    refute @sender.may_spool?
    keep(@listener.accept[0]).write("G")
    @file.write(" and more")
    assert @sender.spool(server, [Lingerd::Part.new(@file, 0, 17)])
    assert_equal 17, @file.stat.size
  end

  def test_it_waits_no_longer_than_until_the_client_has_room
    client, server = connection
    refute @sender.may_spool?(60, server)
    client.close
  end

  def test_what_cannot_be_is_said_at_once
    server = connection[1]
    part = Lingerd::Part.new(@file, 0, 8)
    assert_raises(ArgumentError) { @sender.spool(server, []) }
    assert_raises(ArgumentError) { @sender.spool(server, [part] * 5) }
    assert_raises(ArgumentError) { @sender.spool(server, [part], 0) }
    assert_raises(ArgumentError) { @sender.spool(server, [Lingerd::Part.new(@file, -1, 8)]) }
  end
end

# What Unicorn and Pitchfork serve, when lingerd would take a response that cannot be handed over.
class Prefork < TestCase
  SERVER = Struct.new(:taken?).new(false)
  PAGE = "x" * 8_000_000

  def setup
    super
    @listener = listen("#{@path}.2")
    refute @sender.may_spool?
    keep(@listener.accept[0]).write("G")
    @client, @server = connection
    @server.extend(Lingerd::Prefork::Connection)
    @server.served_by(SERVER, @sender)
  end

  # What the client has in the end of one to whom the block, which is called before the worker waits, lets it read.
  def read_when
    reading = nil
    @server.define_singleton_method(:wait_writable) do |*seconds|
      reading ||= yield(seconds)
      super()
    end
    @server.write_last(PAGE)
    @server.close_write
    reading.value
  end

  def test_what_lingerd_does_not_take_it_is_not_asked_for_again_at_once
    asked = []
    @sender.define_singleton_method(:spool) do |*|
      asked << :asked
      false
    end
    got = read_when do |seconds|
      asked.concat(seconds)
      Thread.new { @client.read }
    end
    assert_equal [:asked, Lingerd::Prefork::WAIT], asked.first(2)
    assert_equal PAGE.size, got.size
  end

  def test_without_memory_the_worker_writes_itself
    [Errno::EROFS, Errno::EMFILE, Errno::EFBIG, Errno::EDQUOT, IOError, ArgumentError].each do |error|
      teardown && setup unless error == Errno::EROFS
      got = File.stub(:open, ->(*) { raise Errno::ENOENT }) do
        Tempfile.stub(:create, ->(*) { raise error }) do
          read_when { Thread.new { @client.read } }
        end
      end
      assert_equal PAGE.size, got.size
    end
  end

  def test_what_is_longer_than_it_says_ends_with_its_length
    body = Lingerd::Prefork::Body.new([PAGE, "more"], @server, PAGE.size)
    body.each { flunk }
    assert @server.closed?
  end
end
