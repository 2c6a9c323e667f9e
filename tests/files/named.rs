//! Files that an app names in the place of its answer.

use std::os::unix::fs::symlink;

use super::{Folder, ask};
use crate::support::{Client, Worker, on_every_backend_and_tls, pattern, until};

on_every_backend_and_tls! {
    apps_name_files
    what_an_app_names_is_all_that_is_said
    what_an_app_names_in_full_is_below_the_root
}

/// Answers with what stands behind `/say/` as fields, `&` between them.
fn naming() -> Worker {
    Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            let target = head.split(' ').nth(1).unwrap();
            let fields = target.strip_prefix("/say/").unwrap_or_default().replace('&', "\r\n").replace("%20", " ");
            let more = if fields.is_empty() { String::new() } else { format!("{fields}\r\n") };
            incoming.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n{more}\r\nplain"));
        }
    })
}

fn apps_name_files(backend: &str) {
    let bytes = pattern(32 << 20);
    let folder = Folder::new(&[("a.pdf", b"document"), ("big.bin", &bytes)]);
    folder.write("secret", b"secret");
    let worker = naming();
    let site = format!(
        "[apps.web]\nupstream = \"{0}\"\nconcurrency = 1\n[[routes]]\nmatch.host = \"off\"\napp = \"web\"\n\
         [[routes]]\napp = \"web\"\nsendfile = {{ root = \"{{folder}}/www\", prefix = \"/protected\" }}\n\
         response_fields.set = {{ X-Set = \"yes\" }}\n",
        worker.url
    );
    let server = folder.server(backend, &site);
    let mut client = Client::of(&server);
    let root = folder.text("www");
    for named in [
        "X-Accel-Redirect:%20/protected/a.pdf".to_owned(),
        format!("X-Sendfile:%20{root}/a.pdf"),
        "x-sendfile:a.pdf".to_owned(),
    ] {
        for _ in 0..2 {
            let answer = client.get(&format!("/say/{named}&Content-Disposition:attachment&Set-Cookie:a&ETag:\"x\""));
            assert_eq!((answer.status, answer.text().as_str()), (200, "document"), "{named}");
            assert_eq!((answer.field("X-Sendfile"), answer.field("X-Accel-Redirect")), (None, None));
            assert_eq!((answer.field("Content-Type"), answer.all("ETag").len()), (Some("application/pdf"), 1));
            assert_ne!(answer.field("ETag"), Some("\"x\""));
            assert_eq!(
                (answer.field("Content-Disposition"), answer.field("Set-Cookie")),
                (Some("attachment"), Some("a"))
            );
            assert!(answer.field("X-Set") == Some("yes") && answer.field("X-Request-Id").is_some());
        }
    }
    let answer = client.get("/say/X-Accel-Redirect:/protected/a.pdf&Content-Type:text/x-own&Cache-Control:private");
    assert_eq!((answer.all("Content-Type"), answer.all("Cache-Control")), (vec!["text/x-own"], vec!["private"]));
    let answer = ask(&mut client, "/say/X-Accel-Redirect:/protected/a.pdf", "Range: bytes=1-3\r\n");
    assert_eq!((answer.status, answer.text().as_str()), (206, "ocu"));
    // What cannot be had, and what names nothing.
    assert_eq!(client.get("/say/X-Accel-Redirect:/protected/missing").status, 404);
    for hidden in ["X-Accel-Redirect:/protected/.env", "X-Sendfile:.env", "X-Accel-Redirect:/protected/a.pdf/"] {
        assert_eq!(client.get(&format!("/say/{hidden}")).status, 404, "{hidden}");
    }
    let secret = format!("X-Sendfile:{}/secret", folder.text(""));
    for outside in [&secret[..], "X-Sendfile:../secret", "X-Accel-Redirect:/../a.pdf", "X-Sendfile:/a.pdf"] {
        assert_eq!(client.get(&format!("/say/{outside}")).status, 502, "{outside}");
    }
    assert_eq!(client.get("/say/X-Other:1").text(), "plain");
    // Where no root is named, the fields are the app's own affair.
    let answer = client.ask("GET /say/X-Sendfile:a.pdf HTTP/1.1\r\nHost: off\r\n\r\n");
    assert_eq!((answer.text().as_str(), answer.field("X-Sendfile")), ("plain", Some("a.pdf")));
    // The only worker is free while a file is sent that nobody reads.
    let mut slow = Client::of(&server);
    slow.begin("/say/X-Accel-Redirect:/protected/big.bin");
    assert!(slow.head().unwrap().contains("Content-Length: 33554432"));
    for _ in 0..3 {
        assert_eq!(client.get("/say/").text(), "plain");
    }
    assert!(slow.take(32 << 20) == bytes);
    assert_eq!(slow.get("/say/").text(), "plain");
}

fn what_an_app_names_in_full_is_below_the_root(backend: &str) {
    let folder = Folder::new(&[("a.pdf", b"document"), ("etc/hostname", b"inside"), ("folder/b.pdf", b"other")]);
    folder.write("other/a.pdf", b"of a later release");
    let current = folder.path("current");
    symlink("www", &current).unwrap();
    let worker = naming();
    let site = format!(
        "[apps.web]\nupstream = \"{}\"\n[[routes]]\napp = \"web\"\nsendfile = {{ root = \"{{folder}}/current\" }}\n",
        worker.url
    );
    let server = folder.server(backend, &site);
    let mut client = Client::of(&server);
    let [link, real] = [&current, &folder.path("www").canonicalize().unwrap()].map(|path| path.display().to_string());
    let mut ask = |named: &str| {
        // The first answer waits for a helper, and the second finds what that has found.
        let answers = [(); 2].map(|()| client.get(&format!("/say/X-Sendfile:{named}")));
        assert_eq!(answers[0].status, answers[1].status, "{named}");
        (answers[1].status, answers[1].text())
    };
    for (named, text) in [
        (format!("{link}/a.pdf"), "document"),
        (format!("{real}/a.pdf"), "document"),
        (format!("{real}/folder/../a.pdf"), "document"),
        ("./a.pdf".to_owned(), "document"),
        ("folder/../folder/b.pdf".to_owned(), "other"),
        ("etc/hostname".to_owned(), "inside"),
    ] {
        assert_eq!(ask(&named), (200, text.to_owned()), "{named}");
    }
    for (named, status) in [
        (format!("{real}/missing"), 404),
        (format!("{real}/folder"), 404),
        (format!("{link}/folder"), 404),
        (real.clone(), 404),
        (format!("{real}/.env"), 404),
        ("/etc/hostname".to_owned(), 502),
        (format!("{real}x/a.pdf"), 502),
        (format!("{real}/../other/a.pdf"), 502),
        (format!("{link}/../other/a.pdf"), 502),
    ] {
        assert_eq!(ask(&named).0, status, "{named}");
    }
    server.says("a file cannot be sent");
    // The link may be switched over.
    std::fs::remove_file(&current).unwrap();
    symlink("other", &current).unwrap();
    let other = folder.path("other").canonicalize().unwrap().display().to_string();
    let target = format!("/say/X-Sendfile:{other}/a.pdf");
    until("it leads elsewhere", || client.get(&target).text() == "of a later release");
}

fn what_an_app_names_is_all_that_is_said(backend: &str) {
    let folder = Folder::new(&[("a.pdf", b"document"), ("folder/a.pdf", b"")]);
    let worker = naming();
    let site = format!(
        "[apps.web]\nupstream = \"{}\"\n[[routes]]\napp = \"web\"\n\
         sendfile = {{ root = \"{{folder}}/www\", prefix = \"/protected\" }}\n",
        worker.url
    );
    let server = folder.server(backend, &site);
    let mut client = Client::of(&server);
    // Each part is what the whole would be, and the whole is of parts.
    let target = "/say/X-Accel-Redirect:/protected/a.pdf&Content-Type:text/x-own";
    let answer = ask(&mut client, target, "Range: bytes=0-1,5-6\r\n");
    let [media_type] = answer.all("Content-Type")[..] else { panic!("{}", answer.head) };
    assert!(answer.status == 206 && media_type.starts_with("multipart/byteranges; boundary="), "{}", answer.head);
    assert_eq!(answer.text().matches("\r\nContent-Type: text/x-own\r\n").count(), 2, "{}", answer.text());
    assert_eq!(answer.text().matches("Content-Type").count(), 2, "{}", answer.text());
    // What was said of the app's own body is not true of the file.
    let digests = "Content-Digest:sha-256=:x:&Digest:a&Repr-Digest:b&Content-MD5:c&X-Digest:d";
    let answer = client.get(&format!("/say/X-Accel-Redirect:/protected/a.pdf&{digests}"));
    for name in ["Content-Digest", "Digest", "Repr-Digest", "Content-MD5"] {
        assert_eq!(answer.field(name), None, "{}", answer.head);
    }
    assert_eq!((answer.text().as_str(), answer.field("X-Digest")), ("document", Some("d")));
    // Only a client is sent on to the name with its slash.
    for _ in 0..2 {
        let answer = client.get("/say/X-Accel-Redirect:/protected/folder");
        assert_eq!((answer.status, answer.field("Location")), (404, None), "{}", answer.head);
    }
}
