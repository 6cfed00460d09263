//! The page to talk to the model is there for everybody, and brings all that it needs.

use crate::{Server, client};

#[test]
fn the_page_needs_no_key_and_nobody_elses_files() {
    let server = Server::start(&["--api-key", "secret"]);
    for (path, kind, fragment) in [
        ("/", "text/html", "<!doctype html>"),
        ("/page.css", "text/css", "color-scheme: light dark"),
        ("/page.js", "text/javascript", "v1/chat/completions"),
    ] {
        let reply = server.get(path);
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.body.contains(fragment), "{path}");
        for elsewhere in ["http:", "https:", "\"//", "url(", "@import"] {
            assert!(!reply.body.contains(elsewhere), "{path} names another place: {elsewhere}");
        }
        for header in [
            &format!("\r\ncontent-type: {kind}; charset=utf-8\r\n"),
            "\r\ncontent-security-policy: default-src 'none'; script-src 'self'; ",
            "\r\nx-content-type-options: nosniff\r\n",
        ] {
            assert!(reply.head.contains(header), "{path}: {}", reply.head);
        }
        assert_eq!(client::ask(&server.address, "POST", path, &[], b"").status, 405, "{path}");
    }
    let page = server.get("/").body;
    // What the policy would keep from running.
    for inline in ["<style", " style=", " onclick=", "javascript:"] {
        assert!(!page.contains(inline), "{inline}");
    }
    let named = page.split(['"']).filter(|part| part.starts_with("page."));
    assert_eq!(named.map(|path| server.get(&format!("/{path}")).status).collect::<Vec<_>>(), [200, 200]);
}
