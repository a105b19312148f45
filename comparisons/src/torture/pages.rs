// SPDX-License-Identifier: BSD-3-Clause

//! What the servers serve to cruel clients. The content of every page is [`tcp::response`], of one
//! size or another.

use super::Server;
use support::apache::{Apache, Setup};
use support::tcp;

/// A page that fits into a server's send buffer.
pub const PAGE: usize = 300_000;

/// One that a client is to leave its request's body behind for.
pub const UNREAD: usize = 1_000_000;

/// One that fits into no send buffer.
pub const BIG: usize = 12_000_000;

/// The most that may be uploaded.
pub const UPLOAD_LIMIT: usize = 100_000;

/// A directive that leaves nothing behind: whoever has to look for directives does not know the
/// length of what comes out, and sends chunks, or ends with the end of the stream.
const DIRECTIVE: &[u8] = b"<!--#set var=\"nothing\" value=\"\" -->";

/// The files, by their names.
pub fn pages() -> [(&'static str, Vec<u8>); 4] {
    [
        ("page", tcp::response(PAGE)),
        ("page.shtml", [DIRECTIVE, &tcp::response(PAGE)].concat()),
        ("unread.asis", tcp::response(UNREAD)),
        ("big", tcp::response(BIG)),
    ]
}

/// Adds what Apache needs for the pages, other than the files.
pub fn set_up(setup: Setup) -> Setup {
    // mod_asis does not read the body of a request. For a plain file Apache does, and before it says
    // 401, too, as that is no reason to close.
    let setup = setup.modules(&["alias", "asis", "include"]).tls().also_v6().with(&format!(
        "LimitRequestBody {UPLOAD_LIMIT}\nRedirect 503 /503\n\
         <Directory />\nOptions +Includes\n</Directory>\n\
         <FilesMatch \\.shtml$>\nSetOutputFilter INCLUDES\n</FilesMatch>\n\
         <FilesMatch \\.asis$>\nSetHandler send-as-is\n</FilesMatch>"
    ));
    if cfg!(target_os = "linux") {
        setup // where the buffers of loopback are large by themselves
    } else {
        setup.with(&format!("SendBufferSize {}", 2 * PAGE))
    }
}

/// Where clients find it.
pub fn server(apache: &Apache) -> Server {
    Server { plain: apache.address, v6: apache.v6, tls: apache.other }
}

/// Puts the pages up.
pub fn publish(apache: &Apache) {
    for (name, content) in pages() {
        apache.publish(name, &content);
    }
    let head = format!("Content-Type: text/plain\nContent-Length: {UNREAD}\n\n");
    apache.publish("unread.asis", &[head.as_bytes(), &tcp::response(UNREAD)].concat());
    apache.publish("401.asis", b"Status: 401 Unauthorized\nContent-Length: 10\n\nwho there?");
}
