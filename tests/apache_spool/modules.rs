// SPDX-License-Identifier: BSD-3-Clause

//! With modules that make a response, or send it, in ways of their own.

use super::*;
use lingerd_platform::fdpass::Link;
use lingerd_platform::process;
use std::os::unix::net::UnixListener;
use support::apache::user;
use support::{is_root, skip};

#[test]
fn a_file_that_php_names_for_xsendfile_is_spooled() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).php().modules(&["xsendfile"]).with("XSendFile On");
    let Some(apache) = setup.start() else { return };
    let much = publish(&apache);
    apache.publish("page.php", b"<?php header('X-Sendfile: ' . __DIR__ . '/much');");
    assert_spooled(&lingerd, apache.address, "/page.php", &much);
}

#[test]
fn what_perl_prints_or_sends_is_spooled() {
    let lingerd = lingerd(&[]);
    let perl = "<Perl>\npackage Page;\n\
                use Apache2::RequestRec ();\nuse Apache2::RequestIO ();\nuse Apache2::RequestUtil ();\n\
                sub handler {\nmy $r = shift;\n$r->content_type('text/plain');\n\
                if ($r->args eq 'send') { $r->sendfile($r->document_root . '/much'); }\n\
                else {\nif ($r->args eq 'flush') { $r->print('y' x 500_000); $r->rflush; }\n\
                $r->print('x' x 10_000) for 1 .. 300;\n}\nreturn 0;\n}\n1;\n</Perl>\n\
                <Location /perl>\nSetHandler modperl\nPerlResponseHandler Page\n</Location>";
    let Some(apache) = setup(&lingerd.site.socket()).modules(&["perl"]).with(perl).start() else { return };
    let much = publish(&apache);
    assert_spooled(&lingerd, apache.address, "/perl?print", &[b'x'; MUCH]);
    assert_spooled(&lingerd, apache.address, "/perl?send", &much);
    let body = read(ask(apache.address, &request("/perl?flush"))).body;
    assert!(body == [&[b'y'; 500_000][..], &[b'x'; MUCH]].concat());
}

/// A server for mod_proxy_fcgi that gives `body` to so many requests, one after the other.
fn serve_fast_cgi(listener: &TcpListener, requests: usize, body: &[u8]) {
    let record = |kind: u8, content: &[u8]| {
        let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[1, kind, 0, 1, high, low, 0, 0], content].concat()
    };
    for _ in 0..requests {
        let mut link = http::bounded(listener.accept().unwrap().0);
        loop {
            let mut head = [0; 8];
            link.read_exact(&mut head).unwrap();
            let length = u16::from_be_bytes([head[4], head[5]]);
            link.read_exact(&mut vec![0; usize::from(length) + usize::from(head[6])]).unwrap();
            if head[1] == 5 && length == 0 {
                break; // the end of its standard input
            }
        }
        let mut response = record(6, b"Content-Type: text/plain\r\n\r\n");
        body.chunks(60_000).for_each(|piece| response.extend(record(6, piece)));
        response.extend([record(6, b""), record(3, &[0; 8])].concat());
        link.write_all(&response).unwrap();
    }
}

#[test]
fn what_comes_over_fast_cgi_is_spooled() {
    let lingerd = lingerd(&[]);
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = format!("ProxyPass /backend fcgi://{}/", backend.local_addr().unwrap());
    let setup = setup(&lingerd.site.socket()).modules(&["proxy", "proxy_fcgi"]).with(&proxy);
    let Some(apache) = setup.start() else { return };
    let much = tcp::response(MUCH);
    thread::scope(|scope| {
        scope.spawn(|| serve_fast_cgi(&backend, MANY, &much));
        assert_spooled(&lingerd, apache.address, "/backend", &much);
    });
}

#[test]
fn a_tunnel_is_left_alone() {
    let lingerd = lingerd(&[]);
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = backend.local_addr().unwrap().port();
    let proxy = format!("ProxyRequests On\nAllowCONNECT {port}");
    let setup = setup(&lingerd.site.socket()).modules(&["proxy", "proxy_connect"]).with(&proxy);
    let Some(apache) = setup.start() else { return };
    let much = tcp::response(MUCH);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut link = http::bounded(backend.accept().unwrap().0);
            link.write_all(&much).unwrap();
            let mut word = [0; 4];
            link.read_exact(&mut word).unwrap();
            link.write_all(&word).unwrap();
        });
        let mut client = ask(apache.address, &format!("CONNECT 127.0.0.1:{port} HTTP/1.0\r\n\r\n"));
        read_head(&mut client);
        let mut body = vec![0; MUCH];
        client.read_exact(&mut body).unwrap();
        assert!(body == much);
        client.write_all(b"word").unwrap();
        assert_eq!(read_rest(client), b"word");
    });
    lingerd.wait_for("spooled=0");
}

/// Whoever was too slow to ask is to be gone soon, and not to have lingerd write for as long as it likes.
#[test]
fn a_response_to_who_was_too_slow_to_ask_the_worker_writes() {
    let lingerd = lingerd(&["-t", "600", "-D", "600"]);
    let setup = setup(&lingerd.site.socket()).php().modules(&["reqtimeout"]);
    let Some(apache) = setup.with("RequestReadTimeout body=1").start() else { return };
    let much = publish(&apache);
    apache.publish("slow.php", b"<?php file_get_contents('php://input'); readfile(__DIR__ . '/much');");
    let request =
        "POST /slow.php HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nConnection: close\r\n\r\nabc";
    let mut client = ask(apache.address, request);
    let held = read(client.try_clone().unwrap());
    assert!(held.body == much, "{}", held.head);
    lingerd.wait_for("spooled=0 handed_over=1 limit=1");
    assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
}

/// What a subrequest is redirected to goes with that, while the page is still being made.
#[test]
fn what_a_page_has_included_is_not_looked_at_any_more() {
    let lingerd = lingerd(&[]);
    let setup = setup(&lingerd.site.socket()).php().modules(&["rewrite"]);
    let Some(apache) = setup.with("<Directory \"/\">\nAllowOverride All\n</Directory>").start() else {
        return;
    };
    apache.publish("part.html", b"part");
    apache.publish(".htaccess", b"RewriteEngine On\nRewriteRule ^nice$ part.html\n");
    // Whatever was the subrequest's is something else by then.
    apache.publish(
        "page.php",
        b"<?php virtual('/nice'); for ($i = 0; $i < 40; $i++) { apache_setenv(\"V$i\", str_repeat('ABCDEFGH', 100)); }
          echo str_repeat('x', 3000000);",
    );
    assert_spooled(&lingerd, apache.address, "/page.php", &[&b"part"[..], &[b'x'; MUCH]].concat());
    assert_eq!(apache.errors_with("exit signal"), [""; 0]);
}

#[test]
fn a_socket_that_was_given_to_somebody_else_is_left_alone() {
    let lingerd = lingerd(&[]);
    let handler = "<Location /given>\nSetHandler proxy:fd://\n</Location>";
    let setup = setup(&lingerd.site.socket()).modules(&["proxy", "proxy_fdpass"]).with(handler);
    let Some(apache) = setup.start() else { return };
    let path = let_pages_write(&apache).join("given");
    let backend = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    publish(&apache);
    let client = ask(apache.address, &request("/given"));
    let mut given = Vec::new();
    backend.set_nonblocking(true).unwrap();
    let mut link = None;
    wait_until("it calls", || {
        link = backend.accept().ok();
        link.is_some()
    });
    let (link, _) = link.unwrap(); // there is one now
    wait_until("it is given", || {
        let _ = link.receive(&mut given);
        !given.is_empty()
    });
    // The only worker has let go of it.
    let _held = get(apache.address, "/small");
    TcpStream::from(given.remove(0)).write_all(b"hello").unwrap();
    assert_eq!(read(client).body, b"hello");
    lingerd.wait_for("handed_over=1");
}

#[test]
fn a_request_for_another_protocol_is_left_alone() {
    let lingerd = lingerd(&[]);
    let Some(apache) = setup(&lingerd.site.socket()).start() else { return };
    let much = publish(&apache);
    let client = ask(apache.address, &request_with("/much", "Upgrade: another\r\n"));
    assert!(read(client).body == much);
    lingerd.wait_for("spooled=0");
}

/// All threads of worker, and lingerd, have the one open by one and the same description; the other is in memory.
#[test]
fn files_that_mod_file_cache_keeps_open_or_mapped_are_spooled() {
    let lingerd = lingerd(&[]);
    let files = ["open", "mapped"].map(|name| lingerd.site.path(name));
    let much = tcp::response(MUCH);
    files.iter().for_each(|file| support::apache::put_up(file, &much, 0o644));
    let [open, mapped] = files.map(|file| file.display().to_string());
    let lines = format!(
        "SendBufferSize 65536\nCacheFile \"{open}\"\nMMapFile \"{mapped}\"\n\
         Alias /open \"{open}\"\nAlias /mapped \"{mapped}\""
    );
    let setup = Setup::new(Mpm::Worker).workers(2).lingerd(&lingerd.site.socket());
    let Some(apache) = setup.modules(&["alias", "file_cache"]).with(&lines).start() else { return };
    for path in ["/open", "/mapped", "/open", "/mapped"] {
        assert_spooled(&lingerd, apache.address, path, &much);
    }
}

/// One that lets in who Apache's `Group` is, and no site's user; `None` when the test is to be skipped.
fn lingerd_for_apache(site: &Arc<Site>) -> Option<Daemon> {
    let user = user().map_err(|missing| skip(&missing)).ok()?;
    Some(site.start(&["-m", "0660", "-g", &user.gid.to_string()]))
}

/// Two virtual hosts, each with a user of its own.
fn setup_itk(socket: &Path) -> Setup {
    let hosts = "<VirtualHost *>\nServerName first\nAssignUserID daemon daemon\n</VirtualHost>\n\
                 <VirtualHost *>\nServerName second\nAssignUserID nobody nogroup\n</VirtualHost>";
    setup(socket).php().modules(&["mpm_itk"]).workers(2).with(hosts)
}

#[test]
fn with_itk_no_user_s_process_is_kept() {
    if !is_root() {
        return;
    }
    let Some(lingerd) = lingerd_for_apache(&Site::new()) else { return };
    let Some(apache) = setup_itk(&lingerd.site.socket()).start() else { return };
    let much = publish(&apache);
    let held = get(apache.address, "/small");
    lingerd.wait_for("handed_over=1 lingering=1");
    assert_spooled(&lingerd, apache.address, "/much", &much);
    assert_spooled(&lingerd, apache.address, "/much.php", &much);
    // It is the site's user who serves, and he could not connect.
    apache.publish("who.php", b"<?php echo posix_geteuid(), ' ', (int)is_writable($_GET['socket']);");
    let who = format!("/who.php?socket={}", lingerd.site.socket().display());
    let daemon = process::user("daemon").unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&get(apache.address, &who).body), format!("{} 0", daemon.uid));
    assert_eq!(apache.errors_with("cannot reach lingerd"), [""; 0]);
    drop(held);
    lingerd.wait_for("refused=0");
}

/// Each process connects for itself, so that none need know that the daemon is another one by now.
#[test]
fn with_itk_a_daemon_that_is_started_anew_gets_the_next_connection() {
    if !is_root() {
        return;
    }
    let site = Site::new();
    let Some(lingerd) = lingerd_for_apache(&site) else { return };
    let Some(apache) = setup_itk(&site.socket()).start() else { return };
    publish(&apache);
    let held = get(apache.address, "/small");
    lingerd.wait_for("handed_over=1 lingering=1");
    drop(held);
    lingerd.finish("closed=1");
    let Some(lingerd) = lingerd_for_apache(&site) else { return };
    let _held = get(apache.address, "/small");
    lingerd.wait_for("handed_over=1 lingering=1");
}

#[test]
fn with_itk_the_bound_is_one_for_all_users() {
    if !is_root() {
        return;
    }
    let lingerd = lingerd(&[]);
    let setup = setup_itk(&lingerd.site.socket()).with("LingerdSpoolMax 64000000 1800000");
    let Some(apache) = setup.start() else { return };
    publish(&apache);
    apache.publish("less.php", b"<?php echo str_repeat('x', 900000);");
    let kept = "echo str_repeat('a', 900000); file_put_contents(__DIR__ . '/kept', '');";
    apache.publish("page.php", paused(kept, "").as_bytes());
    let documents = let_pages_write(&apache);
    let of_second = |path: &str| request(path).replace("localhost", "second");
    // What the one has leaves so little that the other has to wait for its client.
    let paused = ask(apache.address, &request("/page.php"));
    wait_until("it is kept", || documents.join("kept").exists());
    let mut client = ask(apache.address, &of_second("/less.php"));
    let received = read_until_spooled(&lingerd, &mut client);
    assert!(received >= 300_000, "it need not wait: {received}");
    read_rest(client);
    apache.publish("go", b"");
    lingerd.wait_for("spooling=1");
    let other = ask(apache.address, &of_second("/less.php"));
    lingerd.wait_for("spooling=2");
    assert_eq!(read(other).body, [b'x'; 900_000]);
    assert_eq!(read(paused).body, [b'a'; 900_000]);
}
