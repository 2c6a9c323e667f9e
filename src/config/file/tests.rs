//! The file among the other places: precedence, what overrides what, and where every key of it lands.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::super::arguments::{Invocation, Refusal, read};
use super::super::places::PLACES;
use super::super::*;
use super::*;

/// Everything that holds with that file, those arguments and variables.
fn config(file: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, Refusal> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("site.toml");
    std::fs::write(&path, if file.is_empty() { "# All defaults." } else { file }).unwrap();
    let named = [OsString::from("production_server"), "--config".into(), path.into_os_string()];
    let variables = variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    match read(named.into_iter().chain(arguments.iter().map(OsString::from)), &variables.collect())? {
        Invocation::Run(loaded) => Ok(loaded.config),
        other => panic!("{other:?}"),
    }
}

/// What of it is the server's and the first app's.
fn invocation(file: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Result<Settings, Refusal> {
    let mut server = config(file, arguments, variables)?.server;
    server.source.file = None;
    Ok(server)
}

fn settings(file: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Settings {
    invocation(file, arguments, variables).unwrap_or_else(|refusal| panic!("{file}\n{}", refusal.line))
}

/// A file with one value, in the table where the place has it.
fn one(place: &Place, value: &str) -> String {
    let (table, name) =
        place.path.replace('*', "web").rsplit_once('.').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    if let Some(inner) = table.strip_prefix("listen[].") {
        return format!("[[listen]]\naddress = \"unix:/run/x.sock\"\n{inner}.{name} = {value}\n");
    }
    match table.strip_suffix("[]") {
        Some(list) if name == "address" => format!("[[{list}]]\naddress = {value}\n"),
        Some(list) => format!("[[{list}]]\naddress = \"unix:/run/x.sock\"\n{name} = {value}\n"),
        None => format!("[{table}]\n{name} = {value}\n"),
    }
}

#[test]
fn every_key_is_read_from_the_file_as_from_its_flag() {
    for place in PLACES.iter().filter(|place| place.key().is_some() && !place.is_of_route()) {
        let key = place.key().unwrap();
        let example = if place.prefix.is_empty() { key.example } else { "http:/ready" };
        let flag = if key.is_switch() { format!("--{}", key.name) } else { format!("--{}={example}", key.name) };
        let of_socket = super::super::places::OF_SOCKET.contains(&key.name);
        let (flags, from_file) = (
            if of_socket || place.path.starts_with("listen[]") && key.name != "listen" {
                vec!["--listen=unix:/run/x.sock", &flag]
            } else {
                vec![flag.as_str()]
            },
            settings(&one(place, &place.example()), &[], &[]),
        );
        let mut from_flag = settings("", &flags, &[]);
        if of_socket {
            let access = from_flag.listening.unix_at("/run/x.sock".as_ref());
            assert_eq!(access, from_file.listening.unix_at("/run/x.sock".as_ref()), "{}", place.path);
            assert_ne!(access, &UnixListen::default(), "{}", place.path);
            from_flag.listening.unix = from_file.listening.unix.clone();
        }
        if place.path.starts_with("listen[]") && super::super::places::OF_FRONT.contains(&key.name) {
            let listener = ListenAddress::Unix("/run/x.sock".into());
            assert_eq!(&from_flag.listening.front, from_file.listening.front_at(&listener), "{}", place.path);
            assert_ne!(from_flag.listening.front, from_file.listening.front, "{}", place.path);
            from_flag.listening.front.clone_from(&from_file.listening.front);
            from_flag.listening.front_of.clone_from(&from_file.listening.front_of);
        }
        if place.path == "apps.*.error_pages" {
            from_flag.app.answering.error_pages = std::mem::take(&mut from_flag.error_pages);
        }
        from_flag.listening.unix_of.clone_from(&from_file.listening.unix_of);
        assert_eq!(format!("{from_flag:?}"), format!("{from_file:?}"), "{}", place.path);
    }
}

#[test]
fn no_report_prints_what_came_from_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, "hush, all\n").unwrap();
    let environment: Environment = [("SECRET", "hush's \"all\""), ("LONGER", "hush's \"all\" the more"), ("ONE", "1")]
        .into_iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)))
        .collect();
    let of_file = format!("file:{}", path.display());
    for (line, said) in [
        ("log.access.format = \"{${SECRET}}\"", "not {${SECRET}}"),
        ("routes = [{ app = \"${SECRET}\" }]", "there is no app `${SECRET}`"),
        ("routes = [{ app = \"${LONGER}\" }]", "there is no app `${LONGER}`"),
        ("routes = [{ app = \"${ONE}\" }]", "there is no app `1`"),
        ("routes = [{ app = \"web\", limits = [\"FILE\"] }]", "there is no limit `FILE`"),
        ("routes = [{ app = \"web\", auth = { basic = \"/no/${SECRET}\" } }]", "/no/${SECRET}: there is no such file"),
        ("hub.a.bus.url = \"nowhere://${SECRET}\"", ""),
    ] {
        let line = line.replace("FILE", &of_file);
        let report = File::parse(Text::new("secret.toml".into(), line.clone()), &environment).complaints();
        assert!(!report.is_empty() && !report.contains("hush"), "{line}\n{report}");
        assert!(report.contains(&said.replace("FILE", &of_file)), "{line}\n{report}");
    }
}

#[test]
fn the_file_is_the_lowest_place_but_for_defaults() {
    let file = "apps.web.queue.size = 40";
    let (rip, own) = (("RIP_MAX_QUEUE", "30"), ("PRODUCTION_SERVER_MAX_QUEUE", "20"));
    assert_eq!(settings(file, &[], &[]).app.queue.size, 40);
    assert_eq!(settings(file, &[], &[rip]).app.queue.size, 30);
    assert_eq!(settings(file, &["--max-queue=10"], &[rip, own]).app.queue.size, 10);
    let workers = "apps.web.workers = { min = 2, max = 8 }";
    assert_eq!(settings(workers, &[], &[]).app.scaling, Some(Scaling { min: 2, max: 8 }));
    assert_eq!(settings(workers, &["w:3"], &[]).app.scaling, None);
    let listen = "listen = [{ address = \"1000\" }, { address = \"1001\" }]";
    let ports = |arguments: &[&str], variables: &[(&str, &str)]| -> Vec<String> {
        settings(listen, arguments, variables).listening.at.iter().map(ToString::to_string).collect()
    };
    assert_eq!(ports(&[], &[]), ["0.0.0.0:1000", "0.0.0.0:1001"]);
    assert_eq!(ports(&[], &[("PORT", "3000")]), ["0.0.0.0:3000"]);
    assert_eq!(ports(&["http:4000"], &[("PORT", "3000")]), ["0.0.0.0:4000"]);
    assert!(settings(listen, &[], &[("XDG_RUNTIME_DIR", "/x")]).process.run_dir.ends_with("production_server-1000"));
    let target = |file: &str, arguments: &[&str]| settings(file, arguments, &[]).logs.access.target;
    assert_eq!(target("log.access = false", &[]), LogTarget::Off);
    assert_eq!(target("log.access = false", &["--access-log=/a"]), LogTarget::File("/a".into()));
    assert_eq!(target("log.access = \"/a\"", &["--no-access-log"]), LogTarget::Off);
    assert_eq!(settings("", &[], &[]).source.file, None);
}

/// What is said of one log alone wins over what is said of all, in whatever order the file has them.
#[test]
fn the_more_special_key_wins_wherever_it_stands_in_the_file() {
    let (all, access, events) =
        ("log.format = \"rip\"\n", "log.access.format = \"common\"\n", "log.events.format = \"json\"\n");
    for file in [[all, access, events], [access, events, all]] {
        let settings = settings(&file.concat(), &[], &[]);
        let formats = (settings.logs.access.format, settings.logs.events.format);
        assert_eq!(formats, (AccessLogFormat::Common, EventFormat::Json), "{file:?}");
    }
}

#[test]
fn the_app_is_what_the_highest_place_says() {
    let command = |words: &[&str]| Command::Argv(words.iter().map(OsString::from).collect());
    let file = "[apps.shop]\ncommand = [\"node\", \"${SCRIPT:-server.js}\"]\nworkers = 4";
    let from_file = settings(file, &[], &[("SCRIPT", "a.js")]).app;
    assert_eq!((from_file.name.as_str(), from_file.program.command), ("shop", command(&["node", "a.js"])));
    let said = settings(file, &["--", "ruby", "x"], &[]).app;
    assert_eq!((said.name.as_str(), said.program.command, said.workers), ("shop", command(&["ruby", "x"]), 4));
    let said = settings(file, &["--respond=hello"], &[]).app;
    assert_eq!((said.program.command, said.instead.respond.as_deref()), (Command::None, Some("hello")));
    let said = settings("apps.web.respond = \"hello\"", &["--", "node"], &[]).app;
    assert_eq!((said.program.command, said.instead.respond), (command(&["node"]), None));
    let said = settings("apps.web.upstream = \"unix:/a\"", &[], &[("PRODUCTION_SERVER_RESPOND", "x")]).app;
    assert_eq!((said.instead.upstreams.len(), said.instead.respond.as_deref()), (0, Some("x")));
    let refusal = invocation("apps.web.respond = \"x\"", &["w:4"], &[]).unwrap_err();
    assert!(refusal.exit_code == 78 && refusal.line.contains("`apps.web.respond` and w:4"), "{}", refusal.line);
}

const SITE: &str = "
    [apps.site]
    queue.size = 7
    environment = { A = \"${A:-1}\", B = 2, C = true }
    [apps.api]
    command = [\"sh\"]
    queue = { size = 8 }
    [[routes]]
    match = { host = \"*.Example.org\", path = \"/api/*\", method = [\"get\", \"POST\"] }
    app = \"api\"
    rewrite = { strip = \"/api/\", prefix = \"/v2\" }
    request_fields = { set = { X-A = \"${A:-1}\" }, remove = \"Cookie\" }
    [[routes]]
    match.path = \"/old\"
    redirect = \"/new\"
    [[routes]]
    match.path = \"/up*\"
    upstreams = [\"unix:/a\", \"unix:/b\"]
    balance = \"least\"
    [[routes]]
    match.path = \"/upper\"
    upstreams = [\"unix:/a\", \"unix:/b\"]
    balance = \"least\"
    [[routes]]
    match.path = \"/teapot\"
    respond = { status = 418, body = \"short and stout\" }
    [[routes]]
    app = \"site\"
";

#[test]
fn several_apps_and_their_routes_come_from_one_file() {
    use super::super::route::{HostPattern, PathPattern, Piece, Redirect, Target};
    let config = config(SITE, &["--listen=1000"], &[("A", "x")]).unwrap();
    let apps: Vec<_> = config.apps.iter().map(|app| (app.name.as_str(), app.queue.size, app.sharing.balance)).collect();
    let default = App::default().queue.size;
    let expected =
        [("api", 8, Balance::Lifo), ("site", 7, Balance::Lifo), ("unix:/a unix:/b least", default, Balance::Least)];
    assert_eq!(apps.len(), 3);
    assert!(expected.iter().all(|one| apps.contains(one)), "{apps:?}");
    let site = config.apps.iter().find(|app| app.name == "site").unwrap();
    let environment: Vec<_> = site.program.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(environment, ["A=x", "B=2", "C=true"]);
    let to = |index: usize| match config.routes[index].to {
        Target::App(app) => config.apps[app].name.as_str(),
        _ => "",
    };
    let targets: Vec<_> = (0..config.routes.len()).map(to).collect();
    assert_eq!(targets, ["api", "", "unix:/a unix:/b least", "unix:/a unix:/b least", "", "site"]);
    let first = &config.routes[0];
    assert_eq!(first.matching.host, Some(HostPattern::Below(".example.org".to_owned())));
    assert_eq!(first.matching.path, Some(PathPattern::Prefix("/api/".to_owned())));
    assert_eq!(first.matching.methods, ["GET", "POST"]);
    assert_eq!((first.rewrite.strip.as_str(), first.rewrite.prefix.as_str()), ("/api", "/v2"));
    assert_eq!(first.request_fields.set, [("X-A".to_owned(), "x".to_owned())]);
    assert_eq!(first.request_fields.remove, ["Cookie"]);
    let redirect = Redirect { to: vec![Piece::Text("/new".to_owned())], status: 302 };
    assert_eq!(config.routes[1].to, Target::Redirect(redirect));
    assert!(matches!(&config.routes[4].to, Target::Respond(respond) if respond.status == 418));
    let files = ["", "[apps.shop]", "[[routes]]\napp = \"web\""];
    for file in files {
        let config = self::config(file, &[], &[]).unwrap();
        assert_eq!((config.apps.len(), &config.routes[..]), (1, &[Route::all_to(0)][..]), "{file}");
    }
    let without = self::config("[[routes]]\nrespond = \"x\"", &[], &[]).unwrap().apps;
    assert!(without.len() == 1 && without[0].name == "own answers" && without[0].workers == 0, "{without:?}");
    assert_eq!(self::config("[[routes]]\nrespond = \"x\"", &["w:2"], &[]).unwrap().apps.len(), 1);
}

const HUBS: &str = "
    [hub.news]
    history = 5
    [hub.chat]
    topics = [\"chat.*\", \"${TOPIC}\"]
    history = { count = 0, bytes = \"2MiB\", age = \"1h\" }
    memory = \"1GiB\"
    most_topics = 7
    message = 9
    topics_per_socket = 8
    ping = \"1s\"
    pong = \"2s\"
    poll = \"3s\"
    origins = [\"*\", \"http://a:81\"]
    deflate = false
    app = \"web\"
    events = \"/chat/events\"
    dialect = \"websocket-events\"
    path = \"/chat/\"
    bus = { directory = \"/run/x\" }
    [[routes]]
    match.path = \"/news/*\"
    hub = \"news\"
    limits = \"slow\"
    [[routes]]
    respond = \"x\"
    [limits.slow]
    rate = \"1/s\"
";

#[test]
fn hubs_come_from_the_file() {
    use super::super::route::{PathPattern, Target};
    let config = config(HUBS, &[], &[("TOPIC", "all")]).unwrap();
    let chat = Hub {
        name: "chat".to_owned(),
        topics: vec!["chat.*".to_owned(), "all".to_owned()],
        history: History { count: 0, bytes: 2 << 20, age: Duration::from_secs(3600) },
        room: Room { memory: 1 << 30, topics: 7, message: 9, topics_per_socket: 8 },
        ping: Duration::from_secs(1),
        pong: Duration::from_secs(2),
        poll: Duration::from_secs(3),
        origins: vec![Origin::Any, Origin::Of { secure: false, host: "a".to_owned(), port: 81 }],
        keys: None,
        deflate: false,
        participant: Participant {
            app: Some("web".to_owned()),
            path: "/chat/events".to_owned(),
            dialect: super::super::hub::Dialect::Events,
        },
        path: "/chat".to_owned(),
        bus: Some(super::super::hub::Bus::Directory("/run/x".into())),
    };
    let history = History { count: 5, ..Hub::default().history };
    let news = Hub { name: "news".to_owned(), history, ..Hub::default() };
    assert_eq!(config.server.hubs, [news, chat]);
    // One that no route is to is served below its path, before all routes and on any host.
    let shown = config.routes.iter().map(|route| (route.matching.to_string(), &route.to));
    let (patterns, targets): (Vec<_>, Vec<_>) = shown.unzip();
    assert_eq!(patterns, ["/chat/listen", "/chat/notify", "/chat/topics", "/news/*", "/*"]);
    assert_eq!(targets[..4], [&Target::Hub(1), &Target::Hub(1), &Target::Hub(1), &Target::Hub(0)]);
    assert_eq!(config.routes[0].matching.path, Some(PathPattern::Exact("/chat/listen".to_owned())));
    assert_eq!(config.routes[3].access.limits, ["slow"]);
    assert_eq!(config.apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>(), ["own answers"]);
}

#[test]
fn one_hub_comes_from_a_flag_unless_the_file_has_its_name() {
    let hubs = |file: &str, arguments: &[&str], variables: &[(&str, &str)]| -> Vec<(String, String)> {
        let hubs = settings(file, arguments, variables).hubs;
        hubs.into_iter().map(|hub| (hub.name, hub.path)).collect()
    };
    let pair = |name: &str, path: &str| (name.to_owned(), path.to_owned());
    let on = [("PRODUCTION_SERVER_HUB", "on")];
    for of_flag in [hubs("", &["--hub"], &[]), hubs("", &[], &on), hubs("server.hub = true", &[], &[])] {
        assert_eq!(of_flag, [pair("hub", "/api/v1")]);
    }
    assert_eq!(hubs("", &[], &[]), []);
    assert_eq!(hubs("server.hub = true", &[], &[("PRODUCTION_SERVER_HUB", "off")]), []);
    assert_eq!(hubs("hub.hub.path = \"/x\"", &["--hub"], &[]), [pair("hub", "/x")]);
    assert_eq!(hubs("hub.chat.path = \"/x\"", &["--hub"], &[]), [pair("hub", "/api/v1"), pair("chat", "/x")]);
    let routes = config("", &["--hub"], &[]).unwrap().routes;
    assert_eq!((routes.len(), routes.last()), (4, Some(&Route::all_to(0))), "all else goes to the app");
    let refusal = config("[hub.chat]", &["--hub"], &[]).unwrap_err();
    let said =
        "--hub and `hub.chat` are both served below /api/v1/: expected another `path` or a route for one of them";
    assert!(refusal.line.contains(said) && refusal.exit_code == 78, "{}", refusal.line);
    let routed = "hub.chat = {}\n[[routes]]\nhub = \"chat\"";
    assert_eq!(settings(routed, &["--hub"], &[]).hubs.len(), 2, "a route is to the other");
}

#[test]
fn a_flag_of_an_app_says_nothing_where_there_are_several() {
    for (words, said) in [
        (&["--workers=4"][..], "--workers"),
        (&["w:4"], "w:4"),
        (&["--", "node"], "the command behind --"),
        (&["--respond=x"], "--respond"),
    ] {
        let refusal = config(SITE, words, &[]).unwrap_err();
        let line = format!(
            "error: {said} says nothing of which app it is for: the configuration file has several; write it under \
             [apps.site] or [apps.api]"
        );
        assert_eq!((refusal.line, refusal.exit_code), (line, 64));
    }
    let warned = config(SITE, &[], &[("WEB_CONCURRENCY", "7")]).unwrap().server.source.warnings;
    assert_eq!(warned, ["WEB_CONCURRENCY in the environment has no effect: the configuration file has several apps"]);
}

#[test]
fn sockets_of_the_file_have_their_own_modes() {
    let file = "listen = [{ address = \"unix:/a\", mode = \"0600\", group = \"web\" }, { address = \"unix:/b\" }]";
    let plain = settings(file, &[], &[]);
    let group = Some("web".to_owned());
    assert_eq!(plain.listening.unix_at("/a".as_ref()), &UnixListen { mode: 0o600, owner: None, group: group.clone() });
    assert_eq!(plain.listening.unix_at("/b".as_ref()), &UnixListen::default());
    let said = settings(file, &["--listen-mode=0640"], &[]);
    assert_eq!(said.listening.unix_at("/a".as_ref()), &UnixListen { mode: 0o640, owner: None, group });
    assert_eq!(said.listening.unix_at("/b".as_ref()).mode, 0o640);
}

#[test]
fn a_default_that_the_environment_changes_is_no_mistake_of_the_file() {
    let file = "apps.web.timeouts.connect = \"40s\"";
    let refusal = invocation(file, &[], &[]).unwrap_err();
    assert!(refusal.line.contains("the default of `apps.web.timeouts.request`"), "{}", refusal.line);
    let said = settings(file, &["--request-timeout=60s"], &[]).app.timeouts;
    assert_eq!((said.connect, said.request), (Duration::from_secs(40), Duration::from_secs(60)));
}

#[test]
fn mistakes_of_the_command_line_come_before_those_of_the_file() {
    let refusal = invocation("loops = 1", &["nonsense"], &[]).unwrap_err();
    assert_eq!(refusal.exit_code, 64);
}

/// Files with a piece taken out, doubled or replaced: each is read or refused, and what is said has its place in the file and nothing
/// that a terminal could take for a command. `fuzz/` has more of it.
#[test]
fn broken_files_are_refused_without_a_panic() {
    const PIECES: [&str; 17] = [
        "[",
        "]]",
        "{",
        "}",
        "=",
        "\"",
        "'''",
        ".",
        ",",
        "${",
        "\u{1b}[31m",
        "\u{7}",
        "ä",
        "\n",
        "\r",
        "[apps.web]\n",
        "7",
    ];
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config");
    let entries = ["bad", "good"].iter().flat_map(|name| std::fs::read_dir(folder.join(name)).unwrap());
    let mut sources: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    sources.sort();
    let texts: Vec<String> = sources.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let strategy = (0..texts.len(), 0.0..1.0_f64, 0..12_usize, 0..PIECES.len());
    let outcome = proptest::test_runner::TestRunner::deterministic().run(&strategy, |(index, place, length, piece)| {
        let text = &texts[index];
        let boundary = |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
        let start = boundary((place * text.len() as f64) as usize);
        let end = boundary(start + length).max(start);
        let broken = format!("{}{}{}", &text[..start], PIECES[piece], &text[end..]);
        let file = File::parse(Text::new("broken.toml".into(), broken.clone()), &Environment::default());
        let report = file.complaints();
        assert!(!report.contains(|letter: char| letter.is_control() && letter != '\n'), "{broken:?}\n{report:?}");
        for problem in &file.problems {
            assert!(problem.marks.first().is_some_and(|(at, _)| at.start <= broken.len()), "{broken:?}\n{problem:?}");
        }
        assert!(file.problems.is_empty() || !report.is_empty(), "{broken:?}");
        Ok(())
    });
    outcome.unwrap();
}
