//! The tables of the configuration file: what each holds, for which a value alone may stand, and what is none yet.

/// The tables, each with what it holds.
pub const TABLES: &[(&str, &str)] = &[
    ("server", "The process: event loops, limits and deadlines of the client side."),
    ("server.timeouts", "Deadlines of the client side."),
    (
        "server.proxy_protocol",
        "Load balancers that begin each connection with a header of the PROXY protocol; a list alone stands for `from`.",
    ),
    (
        "listen[]",
        "One address to listen on; `[[listen]]` again for each further one. What it says itself holds in the place of `[server]`'s.",
    ),
    (
        "tls",
        "TLS on all listeners on TCP; a word alone, as in `tls = false`, stands for `speak`. Certificates are chosen by the name that a client \
        asks for; the first is shown to all others.",
    ),
    ("listen[].tls", "As `[tls]`, for this listener alone; lists take the place of those."),
    ("listen[].proxy_protocol", "As `[server.proxy_protocol]`, for this listener alone."),
    (
        "apps",
        "The apps behind the loops, each under a name of its own: `[apps.web]`. With several of them `[[routes]]` says which gets what.",
    ),
    (
        "apps.*",
        "One app. It is a command, `upstream`, `respond`, `static`, or without any of them the built-in worker.",
    ),
    ("apps.*.ready", "When a worker counts as ready; a word alone, as in `ready = \"notify\"`, stands for `by`."),
    ("apps.*.timeouts", "Deadlines of the worker side."),
    ("apps.*.queue", "Requests that wait for a worker."),
    (
        "apps.*.health",
        "Whether workers and upstreams are asked how they are; a path alone, as in `health = \"/healthz\"`, stands for `path`.",
    ),
    (
        "apps.*.compress",
        "How answers are compressed; codings alone, as in `compress = [\"zstd\", \"gzip\"]`, stand for `codings`.",
    ),
    ("apps.*.eject", "When an upstream that fails gets no requests for a while."),
    ("apps.*.recycle", "When a worker is replaced."),
    ("apps.*.restart", "How workers are replaced, and how those that crashed come back."),
    ("apps.*.hot_reload", "What changed files do; a word alone, as in `hot_reload = \"process\"`, stands for `by`."),
    ("limits", "How often clients may ask, each limit under a name of its own: `[limits.login]`."),
    (
        "limits.*",
        "One limit; docs/access.md tells how it counts. It holds on the routes that name it in `limits`, or everywhere.",
    ),
    (
        "hub",
        "Hubs, each under a name of its own: `[hub.chat]`. They hold WebSockets and event streams, and send them what is published to topics.",
    ),
    (
        "hub.*",
        "One hub; docs/hub.md tells what is spoken there. It is served on the routes that are to it; where there are none, below its `path`, \
        on any host and before all routes.",
    ),
    (
        "hub.*.history",
        "What is kept of each topic for those who come back; a number alone, as in `history = 0`, stands for `count`.",
    ),
    (
        "hub.*.bus",
        "With whom the hub shares its messages: with other replicas on this machine (`directory`), or with other machines (`url`).",
    ),
    (
        "routes[]",
        "Which requests go where: `[[routes]]` again for each further one; the first that matches is taken, and what none matches is \
        answered with 404. Without any, everything goes to the one app that there is. A route is to an `app`, to `upstreams`, to \
        a fixed answer (`respond`), a `redirect`, files (`static`) or a `hub`.",
    ),
    ("routes[].match", "Which requests the route is for: all that is said must hold; without it: all."),
    ("routes[].health", "As `[apps.NAME.health]`, for the route's own `upstreams`; a path alone stands for `path`."),
    (
        "routes[].compress",
        "As `[apps.NAME.compress]`, for this route alone, and whole: nothing of the app's is added. The word off leaves its answers alone.",
    ),
    ("routes[].eject", "As `[apps.NAME.eject]`, for them."),
    (
        "routes[].auth",
        "What clients have to show to get in: a password, an API key or a token; one of those that are named here is enough.",
    ),
    (
        "routes[].auth.jwt",
        "JSON Web Tokens in Authorization, behind Bearer; `exp` is demanded, and clocks may differ by 30 s.",
    ),
    (
        "routes[].forward_auth",
        "An app that is asked about each request before it passes; a name alone stands for `app`. docs/access.md tells what it is sent.",
    ),
    ("routes[].respond", "A fixed answer; a text alone stands for its `body`."),
    ("routes[].static", "Files; a text alone stands for `root`. docs/files.md tells how they are served."),
    (
        "routes[].sendfile",
        "Files that the app names in its place, so that its worker is free while they are sent; a text alone stands for `root`.",
    ),
    ("routes[].redirect", "A redirect; a text alone stands for `to`."),
    (
        "routes[].rewrite",
        "What becomes of the path on its way to the app. Its `.` and `..` are resolved before, so that none leads out of `prefix`, and \
         `strip` fits in whatever way the path is spelled by which the route was found; the query stays as it is.",
    ),
    ("routes[].request_fields", "What becomes of the request's fields on their way to the app."),
    ("routes[].response_fields", "What becomes of the fields of an answer that is not the server's own."),
    ("log", "What is written, and how; docs/logs.md has an example of each format."),
    (
        "log.access",
        "The access log; a value alone, as in `access = \"/var/log/access.log\"` or `access = false`, stands for `to`.",
    ),
    ("log.access.redact", "What no access line shows, whatever its format."),
    ("log.events", "Events, and the lines of workers; a value alone, as in `events = \"syslog\"`, stands for `to`."),
    ("metrics", "Who is told what the server counts."),
    (
        "metrics.statsd",
        "Push by StatsD's protocol; an address alone, as in `statsd = \"127.0.0.1:8125\"`, stands for `address`.",
    ),
    (
        "metrics.cloudwatch",
        "Lines in CloudWatch's embedded metric format; a word alone, as in `cloudwatch = \"-\"`, stands for `to`.",
    ),
    (
        "acme",
        "Certificates that come from a certificate authority and renew by themselves (ACME, RFC 8555). With your address you accept the authority's terms.",
    ),
    (
        "acme.eab",
        "The account at the authority that the one here is bound to (external account binding), where it demands one. It is told when the account here is made: a change is for the next one.",
    ),
    ("admin", "Where the server tells about itself to whoever can reach it."),
];

/// Tables for which a value alone stands for one of their keys.
pub const SHORT: &[(&str, &str)] = &[
    ("server.proxy_protocol", "server.proxy_protocol.from"),
    ("listen[].proxy_protocol", "listen[].proxy_protocol.from"),
    ("tls", "tls.speak"),
    ("listen[].tls", "listen[].tls.speak"),
    ("apps.*.ready", "apps.*.ready.by"),
    ("apps.*.hot_reload", "apps.*.hot_reload.by"),
    ("apps.*.health", "apps.*.health.path"),
    ("apps.*.compress", "apps.*.compress.codings"),
    ("hub.*.history", "hub.*.history.count"),
    ("log.access", "log.access.to"),
    ("log.events", "log.events.to"),
    ("metrics.statsd", "metrics.statsd.address"),
    ("metrics.cloudwatch", "metrics.cloudwatch.to"),
    ("routes[].health", "routes[].health.path"),
    ("routes[].compress", "routes[].compress.codings"),
    ("routes[].forward_auth", "routes[].forward_auth.app"),
    ("routes[].respond", "routes[].respond.body"),
    ("routes[].redirect", "routes[].redirect.to"),
    ("routes[].static", "routes[].static.root"),
    ("routes[].sendfile", "routes[].sendfile.root"),
];

/// What is planned or usual elsewhere and means nothing to this version: a path, or its last segment alone.
pub const NOT_YET: &[&str] = &["http2", "http3", "compression", "publish", "include", "listen[].alpn", "apps.*.group"];
