"""The servers that are compared: ours, nginx and haproxy, each answering directly, forwarding to one Unix socket, or, but for haproxy, serving files.

Owns: their command lines and configurations. Rules: each gets one thread of work on one core, no access log, keep-alive
to client and worker without a limit of requests. Ours always adds X-Forwarded-For, -Proto, -Host and -Port, X-Real-IP,
X-Request-Id, X-Request-Start and Via; the peers are told to add the first four, or all. Nothing listens beyond loopback.
"""

import contextlib
import itertools
import os

import processes
from processes import Trouble

HERE = os.path.dirname(os.path.abspath(__file__))
BODY = "ok"
# What servers do that neither answer directly (False) nor forward (True).
FILES = "files"

NGINX = """
daemon off;
master_process {master};
worker_processes 1;
worker_rlimit_nofile {descriptors};
pid {home}/nginx.pid;
error_log {home}/error.log crit;
events {{ worker_connections 32768; }}
http {{
    access_log off;
    server_tokens off;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    send_timeout 600s;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    client_body_buffer_size 64k;
    client_max_body_size 64m;
    proxy_max_temp_file_size 0;
    default_type text/plain;
    {certificate}
    {gzip}
    {upstream}
    server {{
        listen 127.0.0.1:{port} {tls} backlog=4096;
        {location}
    }}
}}
"""

NGINX_TLS = """ssl_certificate {0};
    ssl_certificate_key {1};
    ssl_protocols TLSv1.2 TLSv1.3;"""

# nginx tries as hard as ours does by default; haproxy has one level for all.
NGINX_GZIP = """gzip on;
    gzip_types application/json;
    gzip_proxied any;
    gzip_vary on;
    gzip_comp_level 4;"""
HAPROXY_GZIP = """    compression algo gzip
    compression type application/json
"""

# As people who serve files with it set it up: what is open stays open for as long as ours does.
NGINX_FILES = """root {files};
        sendfile on;
        tcp_nopush on;
        open_file_cache max=1000;
        open_file_cache_valid 1s;"""

NGINX_UPSTREAM = """upstream worker {{
        server unix:{worker};
        keepalive {concurrency};
        keepalive_requests 1000000000;
        keepalive_timeout 600s;
    }}"""

# What is added to a forwarded request, and to its answer, by how much is asked for: {"forwarded": the X-Forwarded-*
# fields alone, "all": also the others that ours adds}. $request_id alone costs nginx 7,400 instructions a request.
NGINX_FIELDS = {
    "none": [],
    "forwarded": [
        "proxy_set_header X-Forwarded-For $remote_addr;",
        "proxy_set_header X-Forwarded-Proto $scheme;",
        "proxy_set_header X-Forwarded-Host $http_host;",
        "proxy_set_header X-Forwarded-Port $server_port;",
    ],
}
NGINX_FIELDS["all"] = NGINX_FIELDS["forwarded"] + [
    "proxy_set_header X-Real-IP $remote_addr;",
    "proxy_set_header X-Request-Id $request_id;",
    'proxy_set_header X-Request-Start "t=$msec";',
    'proxy_set_header Via "1.1 nginx";',
    "add_header X-Request-Id $request_id;",
    'add_header Via "1.1 nginx";',
]

NGINX_FORWARD = """location / {{
            proxy_pass http://worker;
            proxy_http_version 1.1;
            proxy_read_timeout 600s;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            {fields}
        }}"""

HAPROXY = """
global
    nbthread 1
    maxconn 9800
    no log
defaults
    mode http
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    timeout http-keep-alive 600s
frontend front
    bind 127.0.0.1:{port} {tls} backlog 4096
{rules}
"""

HAPROXY_DIRECT = '    http-request return status 200 content-type text/plain string "{body}"'

HAPROXY_FIELDS = {
    "none": [],
    "forwarded": [
        "http-request set-header X-Forwarded-For %[src]",
        "http-request set-header X-Forwarded-Proto http",
        "http-request set-header X-Forwarded-Host %[req.hdr(host)]",
        "http-request set-header X-Forwarded-Port %[dst_port]",
    ],
}
HAPROXY_FIELDS["all"] = HAPROXY_FIELDS["forwarded"] + [
    "unique-id-format %[uuid()]",
    "unique-id-header X-Request-Id",
    "http-request set-header X-Real-IP %[src]",
    "http-request set-header X-Request-Start t=%[date()]",
    'http-request set-header Via "1.1 haproxy"',
    "http-response set-header X-Request-Id %[unique-id]",
    'http-response set-header Via "1.1 haproxy"',
]

HAPROXY_FORWARD = """    {fields}
    default_backend back
backend back
    http-reuse always
    server worker unix@{worker} maxconn {concurrency} pool-max-conn {concurrency}"""


class Server:
    """One running server: where it listens, and the process whose cost (with its children's) is read."""

    def __init__(self, name, port, process):
        self.name, self.port, self.pid = name, port, process.pid


class Bench:
    """The place of one run: its temporary directory, the compiled tools and everything that was started."""

    def __init__(self, home, stack, server, server_core=None, client_core=None, concurrency=512,
                 fields="forwarded"):
        self.home, self.stack, self.server = home, stack, server
        self.server_core, self.client_core, self.concurrency = server_core, client_core, concurrency
        self.fields = fields
        self.numbers = itertools.count(1)  # for directories' names; next() is safe among threads
        self.workers = {}  # the sockets of those that run, by name

    def compile(self, source):
        """Compiles a C file of this directory with `gcc -O2`; returns the program's path."""
        program = os.path.join(self.home, source.removesuffix(".c"))
        if not os.path.exists(program):
            processes.need("gcc")
            status, output = processes.run_to_end(
                ["gcc", "-O2", "-Wall", "-o", program, os.path.join(HERE, source)], timeout=60
            )
            if status != 0:
                raise Trouble(f"gcc could not compile {source}:\n{output}")
        return program

    def worker(self, source="worker.c", name="worker"):
        """Starts a worker on the clients' core, unless it runs; returns its socket."""
        if name not in self.workers:
            program, path = self.compile(source), os.path.join(self.home, f"{name}.sock")
            log = os.path.join(self.home, f"{name}.log")
            process = self.stack.enter_context(processes.running([program, path], log, self.client_core))
            processes.wait_until_it_answers(process, log, path, "/small")
            self.workers[name] = path
        return self.workers[name]

    def start(self, kind, forwarding, prefix=(), master=True, stack=None, worker=None, flags=(), cores=None, routes=0,
              log=None, secure=False, gzip=False):
        """Starts one server, which answers directly, forwards, or serves files (FILES). `kind` is "nginx", "haproxy", "ours" or "ours:BACKEND"; `prefix` goes before its command,
        as for valgrind; `master=False` makes nginx a single process. It ends with `stack` (the bench's own by default). `worker` is
        the socket of another worker than the usual one; ours gets the `flags`, takes other `cores` than the one for servers, and has so many `routes` by host and path, of which
        the last is taken. With `log` ours writes an access log in that format to a file; `secure` ones speak TLS, with what each of them has by default, and
        those with `gzip` compress JSON."""
        files = self.files() if forwarding == FILES else None
        worker = worker or (self.worker() if forwarding and not files else None)
        home = os.path.join(self.home, f"{kind.replace(':', '-')}-{next(self.numbers)}")
        os.mkdir(home)
        port = processes.free_port()
        base = kind.split(":")[0]
        if base == "ours" and os.path.basename(self.server) == "nginx":
            base = "nginx"  # The comparison of nginx with itself, which shows what the method can resolve.
        command = {"nginx": self.nginx, "haproxy": self.haproxy, "ours": self.ours}[base](
            home, port, worker, kind.partition(":")[2], master, self.certificate() if secure else None, files, gzip
        )
        if base == "ours":
            lines = ["--access-log", os.path.join(home, "access.log"), "--access-log-format", log] if log else ["--no-access-log"]
            command += [*lines, *flags, *(["--static", files] if files else self.routes(home, worker, routes))]
        log = os.path.join(home, "log")
        process = (stack or self.stack).enter_context(
            processes.running([*prefix, *command], log, self.server_core if cores is None else cores, cwd=home)
        )
        processes.wait_until_it_answers(process, log, port, deadline=60.0 if prefix else 15.0, secure=secure)
        return Server(kind, port, process)

    def certificate(self):
        """The paths of a certificate for P-256, of its key, and of both in one file; made once."""
        certificate, key, both = (os.path.join(self.home, f"localhost.{end}") for end in ("pem", "key", "both"))
        if not os.path.exists(both):
            processes.need("openssl")
            status, output = processes.run_to_end(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                 "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
                timeout=30,
            )
            if status != 0:
                raise Trouble(f"openssl made no certificate:\n{output}")
            with open(both, "w") as out:
                for part in (certificate, key):
                    with open(part) as file:
                        out.write(file.read())
        return certificate, key, both

    def files(self):
        """A directory with files of 10 KiB and 1 MiB, which stay in memory."""
        home = os.path.join(self.home, "files")
        os.makedirs(home, exist_ok=True)
        for name, size in (("index.html", 100), ("10k", 10 << 10), ("1m", 1 << 20)):
            with open(os.path.join(home, name), "wb") as file:
                file.write(b"x" * size)
        return home

    def nginx(self, home, port, worker, _backend, master, certificate, files, gzip):
        configuration = os.path.join(home, "nginx.conf")
        with open(configuration, "w") as file:
            file.write(NGINX.format(
                home=home, port=port, descriptors=processes.raise_descriptor_limit(), master="on" if master else "off",
                upstream=NGINX_UPSTREAM.format(worker=worker, concurrency=self.concurrency) if worker else "",
                location=NGINX_FORWARD.format(fields="\n            ".join(NGINX_FIELDS[self.fields]))
                if worker else NGINX_FILES.format(files=files) if files else f'location / {{ return 200 "{BODY}"; }}',
                tls="ssl" if certificate else "",
                certificate=NGINX_TLS.format(*certificate) if certificate else "", gzip=NGINX_GZIP if gzip else "",
            ))
        processes.need("nginx")
        # Started as root, nginx gives its worker to "nobody", who has to reach the socket in our 0700 directory.
        directives = "user root;" if os.geteuid() == 0 else ""
        return [processes.find("nginx"), "-c", configuration, "-p", home, "-e", os.path.join(home, "error.log"),
                *(["-g", directives] if directives else [])]

    def haproxy(self, home, port, worker, _backend, _master, certificate, _files, gzip):
        configuration = os.path.join(home, "haproxy.cfg")
        rules = (HAPROXY_GZIP if gzip else "") + (HAPROXY_FORWARD if worker else HAPROXY_DIRECT)
        with open(configuration, "w") as file:
            file.write(HAPROXY.format(
                port=port, tls=f"ssl crt {certificate[2]}" if certificate else "", rules=rules.format(
                    worker=worker, body=BODY, concurrency=self.concurrency,
                    fields="\n    ".join(HAPROXY_FIELDS[self.fields]),
                )
            ))
        processes.need("haproxy")
        return [processes.find("haproxy"), "-f", configuration, "-db"]

    def ours(self, home, port, _worker, backend, _master, certificate, _files, gzip):
        flags = ["--tls-cert", certificate[0], "--tls-key", certificate[1]] if certificate else []
        if gzip:
            flags += ["--compress", "gzip"]
        return [self.server, "--loops", "1", "--backend", backend or "auto", "--stats-interval", "0s",
                "--run-dir", os.path.join(home, "run"), "--listen", f"127.0.0.1:{port}", *flags]

    def routes(self, home, worker, routes):
        """The flags that say what ours answers: all to one app, or by routes."""
        if not routes:
            return ["--upstream", f"unix:{worker}", "--concurrency", str(self.concurrency)] if worker else ["--respond", BODY]
        to = f'upstreams = "unix:{worker}"' if worker else f'respond = "{BODY}"'
        # Half of them lie on other hosts, and half beside the last on its own.
        places = [("localhost" if at % 2 else f"host{at}.example", f"/path{at}/*") for at in range(1, routes)]
        file = os.path.join(home, "routes.toml")
        with open(file, "w") as out:
            for host, path in [*places, ("localhost", "/*")]:
                out.write(f'[[routes]]\nmatch = {{ host = "{host}", path = "{path}" }}\n{to}\n')
        return ["-f", file]


def check_server(path):
    """The server's path, absolute; "nginx" stands for nginx in our place. One clear line when it is not there."""
    if path == "nginx":
        return path
    full = os.path.abspath(path)
    if not os.access(full, os.X_OK):
        raise Trouble(f"--server {path}: no such program; `cargo build --release` makes target/release/production_server")
    return full


@contextlib.contextmanager
def bench(server, **options):
    """A bench in a temporary directory; everything that it started has ended when the block is left."""
    processes.raise_descriptor_limit()
    processes.end_on_signals()
    with processes.temporary_directory("production_server-bench-") as home, contextlib.ExitStack() as stack:
        yield Bench(home, stack, check_server(server), **options)
