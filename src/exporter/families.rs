//! Every metric, in the order in which it is told.

use std::collections::BTreeMap;

use super::{Family, Kind, Points, Sample};
use crate::control::status::{App, Bus, State, Worker, WorkerState};
use crate::metrics::lives::Lives;
use crate::metrics::series::{AppCounters, OWN, RetryReason};
use crate::metrics::{ConnectionState, Totals};

const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Sample<'_>, &mut Points),
) -> Family {
    Family { name, kind, labels, help, bungate: false, read }
}

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Sample<'_>, &mut Points),
) -> Family {
    family(name, Kind::Counter, labels, help, read)
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
    read: fn(&Sample<'_>, &mut Points),
) -> Family {
    family(name, Kind::Gauge, labels, help, read)
}

const fn bungate(name: &'static str, kind: Kind, help: &'static str, read: fn(&Sample<'_>, &mut Points)) -> Family {
    Family { bungate: true, ..family(name, kind, &[], help, read) }
}

/// All of them, under headings.
pub const ALL: &[(&str, &[Family])] = &[
    ("Requests", REQUESTS),
    ("The server", SERVER),
    ("Hubs", HUBS),
    ("Apps and their queues", APPS),
    ("Workers and upstreams", WORKERS),
    ("The names of Bungate, with `metrics.bungate = true`", BUNGATE),
];

const REQUESTS: &[Family] = &[
    counter(
        "http_server_requests_total",
        &["app", "route", "code"],
        "Requests that have ended, by the status of their answer: 499 where the client left before there was one, 101 as a tunnel \
         began. Without `app`: requests that no app got, refused before it was known whose they were or answered with a document of \
         the server's own.",
        |sample, points| {
            each_series(sample, |app, route, index| {
                for (code, count) in sample.metrics.statuses(index) {
                    points.whole(&[("app", app), ("route", route), ("code", &code.to_string())], count);
                }
            });
        },
    ),
    family(
        "http_server_request_duration_seconds",
        Kind::Histogram,
        &["app", "route"],
        "From a request's first byte to the last of its answer. Without event streams, tunnels, requests that listen to hubs, those whose client left, and those that no app got and no route answered.",
        |sample, points| {
            each_series(sample, |app, route, index| {
                if index != OWN {
                    points.times(&[("app", app), ("route", route)], sample.metrics.took(index));
                }
            });
        },
    ),
];

const SERVER: &[Family] = &[
    family(
        "production_server_build_info",
        Kind::Info,
        &["version", "backend"],
        "Always 1; which program this is, and what runs its loops.",
        |sample, points| {
            points.whole(&[("version", &sample.status.server.version), ("backend", &sample.status.server.backend)], 1);
        },
    ),
    gauge(
        "production_server_start_time_seconds",
        &[],
        "When the server started, in seconds since 1970.",
        |sample, points| {
            points.real(&[], sample.started);
        },
    ),
    gauge("production_server_loops", &[], "Event loops.", |sample, points| {
        points.whole(&[], sample.status.server.loops as u64);
    }),
    gauge(
        "production_server_loop_busy_ratio",
        &["loop"],
        "Which share of the last seconds a loop was busy, as the CPU time of its thread tells.",
        |sample, points| each_loop(sample, |name, time| points.real(&[("loop", name)], time.busy)),
    ),
    counter("production_server_loop_cpu_seconds_total", &["loop"], "CPU time of a loop's thread.", |sample, points| {
        each_loop(sample, |name, time| points.real(&[("loop", name)], time.used.as_secs_f64()));
    }),
    gauge("production_server_connections", &["state"], "Client connections open now, by state.", |sample, points| {
        let totals = sample.metrics.total();
        for state in ConnectionState::ALL {
            points.whole(&[("state", state.name())], totals.states[state as usize]);
        }
    }),
    counter("production_server_connections_accepted_total", &[], "Client connections accepted.", |sample, points| {
        total(sample, points, |totals| totals.total_connections);
    }),
    counter(
        "production_server_connections_refused_total",
        &["reason"],
        "Client connections closed without a word: their address had as many as it may (address); or, where the PROXY protocol is \
         required, their peer may not speak for others (peer), they did not begin with such a header (invalid), or it did not come in \
         time (late).",
        |sample, points| {
            let totals = sample.metrics.total();
            let refused = [
                ("peer", totals.proxy_protocol_refused),
                ("invalid", totals.proxy_protocol_invalid),
                ("late", totals.proxy_protocol_late),
                ("address", totals.crowded_out),
            ];
            refused.iter().for_each(|(reason, count)| points.whole(&[("reason", reason)], *count));
        },
    ),
    counter(
        "production_server_idle_connections_closed_total",
        &[],
        "Idle client connections closed to make place for others, near `server.max_connections`.",
        |sample, points| total(sample, points, |totals| totals.idle_closed),
    ),
    counter(
        "production_server_accept_pauses_total",
        &[],
        "Times that accepting paused because no descriptor was left.",
        |sample, points| total(sample, points, |totals| totals.accept_pauses),
    ),
    gauge("production_server_tunnels", &[], "Tunnels, as of WebSockets, open now.", |sample, points| {
        total(sample, points, |totals| totals.active_tunnels);
    }),
    counter(
        "production_server_tls_handshakes_total",
        &["result"],
        "TLS handshakes by what became of them: `full`, `resumed`, or why there was none. `plain`: a request without TLS; \
         `malformed`: what came was no TLS, or broken; `nothing_in_common`: SSL 2, too; `refused`: the client did not go on, as one that does not trust the certificate; `left`, `late`: it ended before, or took too long.",
        |sample, points| {
            let totals = sample.metrics.total();
            for (result, count) in [
                ("full", totals.tls_handshakes),
                ("resumed", totals.tls_resumed),
                ("unknown_name", totals.tls_unknown_name),
                ("nothing_in_common", totals.tls_nothing_in_common),
                ("client_certificate", totals.tls_client_certificate),
                ("refused", totals.tls_refused),
                ("malformed", totals.tls_failed),
                ("plain", totals.tls_plain),
                ("late", totals.tls_late),
                ("left", totals.tls_left),
            ] {
                points.whole(&[("result", result)], count);
            }
        },
    ),
    gauge(
        "production_server_tls_certificate_not_after_seconds",
        &["listener", "name"],
        "Until when a certificate holds, in seconds since 1970, by the first name that it is for.",
        |sample, points| {
            for one in &sample.status.certificates {
                let name = one.names.first().map_or("", String::as_str);
                points.real(&[("listener", &one.listener), ("name", name)], one.not_after as f64);
            }
        },
    ),
    counter(
        "production_server_tls_broken_total",
        &[],
        "TLS connections closed because what came on them after the handshake was malformed.",
        |sample, points| total(sample, points, |totals| totals.tls_broken),
    ),
    counter(
        "production_server_acme_orders_total",
        &["result"],
        "Attempts to get a certificate by ACME: `issued`, or `failed`.",
        |sample, points| {
            if let Some(acme) = &sample.status.acme {
                points.whole(&[("result", "issued")], acme.issued);
                points.whole(&[("result", "failed")], acme.failed);
            }
        },
    ),
    gauge(
        "production_server_acme_next_attempt_seconds",
        &[],
        "When a certificate is ordered the next time, in seconds since 1970.",
        |sample, points| {
            if let Some(acme) = &sample.status.acme {
                points.real(&[], acme.next_attempt as f64);
            }
        },
    ),
    counter("production_server_bytes_received_total", &[], "Bytes received from clients.", |sample, points| {
        total(sample, points, |totals| totals.bytes_received);
    }),
    counter("production_server_bytes_sent_total", &[], "Bytes sent to clients.", |sample, points| {
        total(sample, points, |totals| totals.bytes_sent);
    }),
    counter(
        "production_server_errors_total",
        &[],
        "Requests that the server refused, answers cut, and bodies that broke behind their answers.",
        |sample, points| total(sample, points, |totals| totals.errors),
    ),
    counter(
        "production_server_timeouts_total",
        &[],
        "Deadlines that passed: of slow heads, bodies and readers, of workers without an answer, of quiet streams, and of waiting.",
        |sample, points| total(sample, points, |totals| totals.timeouts),
    ),
    counter(
        "production_server_clients_gone_total",
        &[],
        "Requests whose client left before their end, or took nothing of their answer for so long that it was cut.",
        |sample, points| {
            total(sample, points, |totals| totals.client_gone);
        },
    ),
    counter(
        "production_server_panics_total",
        &[],
        "Panics caught in a loop, each at the cost of one connection.",
        |sample, points| {
            total(sample, points, |totals| totals.panics);
        },
    ),
    counter(
        "production_server_memory_pauses_total",
        &[],
        "Times that an answer was not read on because `server.buffer_bytes` was used up.",
        |sample, points| total(sample, points, |totals| totals.paused_for_memory),
    ),
    counter(
        "production_server_memory_refusals_total",
        &[],
        "Requests refused because `server.buffer_bytes` was used up.",
        |sample, points| total(sample, points, |totals| totals.memory_refused),
    ),
    counter(
        "production_server_spooled_total",
        &[],
        "Answers that went on into the spool because memory for slow clients was used up, and request bodies that were gathered there.",
        |sample, points| total(sample, points, |totals| totals.spooled),
    ),
    counter(
        "production_server_spool_refusals_total",
        &[],
        "Answers and request bodies for which the spool had no room, or its disk failed: their worker waits for the client.",
        |sample, points| total(sample, points, |totals| totals.spool_refused),
    ),
    gauge("production_server_spool_bytes", &[], "Bytes of the disk that the spool takes now.", |sample, points| {
        total(sample, points, |totals| totals.spool_bytes);
    }),
    counter(
        "production_server_rate_limited_total",
        &["limit", "action"],
        "Requests that met a limit: `refused`, `delayed`, or `spared` in a dry run.",
        |sample, points| {
            for limit in &sample.status.limits {
                for (action, count) in
                    [("refused", limit.refused), ("delayed", limit.delayed), ("spared", limit.spared)]
                {
                    points.whole(&[("limit", &limit.name), ("action", action)], count);
                }
            }
        },
    ),
    counter(
        "production_server_rate_limit_forgotten_total",
        &["limit"],
        "Clients that a limit forgot before their time, because too many others came.",
        |sample, points| {
            for limit in &sample.status.limits {
                points.whole(&[("limit", &limit.name)], limit.forgotten);
            }
        },
    ),
    counter(
        "production_server_denied_total",
        &[],
        "Requests refused because their client's address is not allowed.",
        |sample, points| total(sample, points, |totals| totals.denied),
    ),
    counter(
        "production_server_auth_total",
        &["result"],
        "Requests whose credentials were asked for, or about which an app was: `passed`, `refused`, `busy` where too many waited to be checked, \
        or `unanswered` by the app.",
        |sample, points| {
            let totals = sample.metrics.total();
            let results = [
                ("passed", totals.auth_passed),
                ("refused", totals.auth_refused),
                ("busy", totals.auth_busy),
                ("unanswered", totals.auth_unanswered),
            ];
            results.iter().for_each(|(result, count)| points.whole(&[("result", result)], *count));
        },
    ),
    counter(
        "production_server_helper_jobs_total",
        &[],
        "Pieces of work that the loops had for the helper threads.",
        |sample, points| total(sample, points, |totals| totals.helper_jobs),
    ),
    counter(
        "production_server_helper_refusals_total",
        &[],
        "Pieces of work that were refused because too many waited for the helper threads.",
        |sample, points| total(sample, points, |totals| totals.helper_refusals),
    ),
    counter(
        "production_server_files_cut_total",
        &[],
        "Files that became shorter or could not be read any more while they were sent.",
        |sample, points| total(sample, points, |totals| totals.files_cut),
    ),
    counter(
        "production_server_compressed_total",
        &["coding"],
        "Answers that were compressed, by coding.",
        |sample, points| {
            let totals = sample.metrics.total();
            let of = [("zstd", totals.compressed_zstd), ("br", totals.compressed_br), ("gzip", totals.compressed_gzip)];
            of.into_iter().for_each(|(coding, count)| points.whole(&[("coding", coding)], count));
        },
    ),
    counter(
        "production_server_compression_busy_total",
        &[],
        "Answers that left as they were because too many others were being compressed.",
        |sample, points| total(sample, points, |totals| totals.compress_busy),
    ),
    counter(
        "production_server_compression_in_bytes_total",
        &[],
        "Bytes of bodies before they were compressed.",
        |sample, points| total(sample, points, |totals| totals.compress_bytes_in),
    ),
    counter(
        "production_server_compression_out_bytes_total",
        &[],
        "Bytes of the same bodies afterwards.",
        |sample, points| total(sample, points, |totals| totals.compress_bytes_out),
    ),
    counter(
        "production_server_log_lines_dropped_total",
        &[],
        "Log lines dropped because nobody read them.",
        |sample, points| points.whole(&[], sample.status.log_lines_dropped),
    ),
];

const HUBS: &[Family] = &[
    gauge(
        "production_server_hub_sockets",
        &["transport"],
        "Clients that listen to hubs now, by how: over a WebSocket, as an event stream, or for one answer.",
        |sample, points| {
            let totals = sample.metrics.total();
            for (transport, count) in
                [("websocket", totals.hub_sockets), ("events", totals.hub_event_streams), ("poll", totals.hub_polls)]
            {
                points.whole(&[("transport", transport)], count);
            }
        },
    ),
    counter(
        "production_server_hub_messages_total",
        &[],
        "Messages published in hubs. What came a second time is not among them.",
        |sample, points| total(sample, points, |totals| totals.hub_messages),
    ),
    counter(
        "production_server_hub_deliveries_total",
        &[],
        "Messages handed to clients that listen, each once for each of them.",
        |sample, points| total(sample, points, |totals| totals.hub_deliveries),
    ),
    counter(
        "production_server_hub_gaps_total",
        &[],
        "Times that a client was told that messages are missing.",
        |sample, points| total(sample, points, |totals| totals.hub_gaps),
    ),
    counter(
        "production_server_hub_refused_total",
        &[],
        "Requests to hubs refused for their origin, or because they had no key.",
        |sample, points| total(sample, points, |totals| totals.hub_refused),
    ),
    counter(
        "production_server_hub_events_total",
        &["result"],
        "Events of sockets that apps were told of, and of these those that had no answer, one that refuses them, or one that cannot be read (failed).",
        |sample, points| {
            let totals = sample.metrics.total();
            points.whole(&[("result", "told")], totals.hub_events);
            points.whole(&[("result", "failed")], totals.hub_events_failed);
        },
    ),
    counter(
        "production_server_hub_closed_total",
        &["reason"],
        "WebSockets of hubs that have ended: by the client's close (client), because the server ends (restart), for what came over them \
         (protocol), because a message was too large or too many were on their way (size), because messages are missing and the client \
         cannot be told (gap), because too much waited for a client that does not take it (slow), without a close and with a ping unanswered \
         (silent), or without a close otherwise (lost).",
        |sample, points| {
            let totals = sample.metrics.total();
            for (reason, count) in [
                ("client", totals.hub_closed),
                ("restart", totals.hub_closed_restart),
                ("protocol", totals.hub_closed_protocol),
                ("size", totals.hub_closed_size),
                ("gap", totals.hub_closed_gap),
                ("slow", totals.hub_closed_slow),
                ("silent", totals.hub_closed_silent),
                ("lost", totals.hub_closed_lost),
            ] {
                points.whole(&[("reason", reason)], count);
            }
        },
    ),
    gauge("production_server_hub_topics", &["hub"], "Topics that a hub has.", |sample, points| {
        sample.status.hubs.iter().for_each(|hub| points.whole(&[("hub", &hub.name)], hub.topics as u64));
    }),
    gauge(
        "production_server_hub_memory_bytes",
        &["hub"],
        "What a hub's topics and messages take, with what was made of them for the wire.",
        |sample, points| {
            sample.status.hubs.iter().for_each(|hub| points.whole(&[("hub", &hub.name)], hub.memory_bytes as u64));
        },
    ),
    gauge(
        "production_server_hub_bus_up",
        &["hub"],
        "Whether a hub that has a bus shares its messages now: 1, or 0 while whom to share with is not found.",
        |sample, points| of_buses(sample, points, |bus| u64::from(bus.is_up())),
    ),
    gauge(
        "production_server_hub_bus_followers",
        &["hub"],
        "Replicas on this machine for which this one numbers a hub's messages.",
        |sample, points| of_buses(sample, points, |bus| bus.peers.len() as u64),
    ),
    gauge("production_server_hub_bus_waiting", &["hub"], "Messages that wait for a hub's bus.", |sample, points| {
        of_buses(sample, points, |bus| bus.waiting as u64)
    }),
];

fn of_buses(sample: &Sample<'_>, points: &mut Points, read: fn(&Bus) -> u64) {
    for hub in &sample.status.hubs {
        hub.bus.iter().for_each(|bus| points.whole(&[("hub", &hub.name)], read(bus)));
    }
}

const APPS: &[Family] = &[
    gauge(
        "production_server_app_state",
        &["app", "state"],
        "1 for the state that an app is in, 0 for the others.",
        |sample, points| {
            for app in &sample.status.apps {
                for state in State::ALL {
                    points.whole(&[("app", &app.name), ("state", state.name())], u64::from(app.state == state));
                }
            }
        },
    ),
    gauge("production_server_queue_depth", &["app"], "Requests that wait for a worker now.", |sample, points| {
        each_app(sample, points, |app| app.queue.depth as u64);
    }),
    gauge("production_server_queue_limit", &["app"], "Requests that may wait for a worker.", |sample, points| {
        each_app(sample, points, |app| app.queue.size as u64);
    }),
    family(
        "production_server_queue_duration_seconds",
        Kind::Histogram,
        &["app"],
        "How long requests waited for a worker, whether they got one or not. Those that got one at once count as 0.",
        |sample, points| {
            for (app, index) in sample.metrics.names().apps.iter().zip(0..) {
                points.times(&[("app", app)], sample.metrics.waited(index));
            }
        },
    ),
    counter(
        "production_server_queue_rejected_total",
        &["app", "reason"],
        "Requests that got no worker: the queue was full, they waited too long (timeout) or too long for any worker to be ready (hold), \
         the app has failed, or every worker had as many tunnels as it may.",
        |sample, points| {
            each_app_counter(
                sample,
                points,
                "reason",
                &[
                    ("full", |app| app.queue_full.value()),
                    ("timeout", |app| app.queue_timeouts.value()),
                    ("hold", |app| app.hold_expired.value()),
                    ("failed", |app| app.app_failed.value()),
                    ("tunnels", |app| app.no_tunnel.value()),
                ],
            );
        },
    ),
    counter(
        "production_server_retries_total",
        &["app", "reason"],
        "Requests given to a second worker: the first declined, nothing of it was taken, or a kept connection ended under it.",
        |sample, points| {
            each_app_counter(
                sample,
                points,
                "reason",
                &[
                    (RetryReason::Declined.name(), |app| app.retries[RetryReason::Declined as usize].value()),
                    (RetryReason::NotTaken.name(), |app| app.retries[RetryReason::NotTaken as usize].value()),
                    (RetryReason::ConnectionLost.name(), |app| {
                        app.retries[RetryReason::ConnectionLost as usize].value()
                    }),
                ],
            );
        },
    ),
    counter(
        "production_server_answers_cut_total",
        &["app"],
        "Answers that had begun and that the server could not complete. Those whose client left are not among them.",
        |sample, points| each_app_counter(sample, points, "", &[("", |app| app.cut.value())]),
    ),
    counter("production_server_tunnels_opened_total", &["app"], "Tunnels opened.", |sample, points| {
        each_app_counter(sample, points, "", &[("", |app| app.tunnels.value())]);
    }),
];

const WORKERS: &[Family] = &[
    gauge("production_server_workers", &["app", "state"], "Workers and upstreams, by state.", |sample, points| {
        for app in &sample.status.apps {
            for state in WorkerState::ALL {
                let count = app.workers.iter().filter(|worker| worker.state == state).count();
                points.whole(&[("app", &app.name), ("state", state.name())], count as u64);
            }
        }
    }),
    gauge(
        "production_server_workers_wanted",
        &["app"],
        "Workers and upstreams that there are to be.",
        |sample, points| {
            each_app(sample, points, |app| app.workers_wanted as u64);
        },
    ),
    counter("production_server_worker_starts_total", &["app"], "Workers started.", |sample, points| {
        each_app(sample, points, |app| app.lives.starts);
    }),
    counter(
        "production_server_worker_exits_total",
        &["app", "reason"],
        "Workers that have ended, by why: `crash` is an end that nobody asked for.",
        |sample, points| {
            for app in &sample.status.apps {
                for (reason, count) in &app.lives.exits {
                    points.whole(&[("app", &app.name), ("reason", reason)], *count);
                }
            }
        },
    ),
    counter(
        "production_server_worker_connections_opened_total",
        &["app"],
        "Connections opened to workers.",
        |sample, points| each_app_counter(sample, points, "", &[("", |app| app.worker_connections.value())]),
    ),
    counter(
        "production_server_worker_connect_failures_total",
        &["app"],
        "Connects to workers that were refused or took too long.",
        |sample, points| each_app_counter(sample, points, "", &[("", |app| app.connects_failed.value())]),
    ),
    counter(
        "production_server_worker_requests_total",
        &["app", "worker"],
        "Requests that the workers of a place were given and that may have run.",
        |sample, points| {
            places(sample, |app, place, workers| {
                let before = workers.iter().map(|worker| worker.before.requests_before).max().unwrap_or(0);
                let all = before + workers.iter().map(|worker| worker.work.requests).sum::<u64>();
                points.whole(&[("app", app), ("worker", place)], all);
            });
        },
    ),
    gauge(
        "production_server_worker_requests_in_flight",
        &["app", "worker"],
        "Requests that the workers of a place have now.",
        |sample, points| each_place(sample, points, SUM, |worker| Some(u64::from(worker.work.in_flight))),
    ),
    gauge(
        "production_server_worker_tunnels",
        &["app", "worker"],
        "Tunnels through the workers of a place now.",
        |sample, points| each_place(sample, points, SUM, |worker| Some(u64::from(worker.work.tunnels))),
    ),
    counter(
        "production_server_worker_restarts_total",
        &["app", "worker"],
        "How often a place was filled again, for whatever reason.",
        |sample, points| each_place(sample, points, MOST, |worker| Some(worker.before.restarts)),
    ),
    gauge(
        "production_server_worker_memory_bytes",
        &["app", "worker"],
        "Memory of the processes of a place's workers (PSS), as last measured.",
        |sample, points| each_place(sample, points, SUM, |worker| worker.memory_bytes),
    ),
    gauge(
        "production_server_worker_healthy",
        &["app", "worker"],
        "Whether the worker of a place, or an upstream, passes its health checks: 1 or 0. Only where it is asked.",
        |sample, points| {
            each_place(sample, points, LEAST, |worker| worker.health.as_ref().map(|health| u64::from(health.healthy)));
        },
    ),
    counter(
        "production_server_worker_health_check_failures_total",
        &["app", "worker"],
        "Health checks that the worker of a place, or an upstream, has failed.",
        |sample, points| {
            each_place(sample, points, MOST, |worker| {
                let failed = worker.before.failed_checks;
                (worker.health.is_some() || failed > 0).then_some(failed)
            });
        },
    ),
    counter(
        "production_server_upstream_ejections_total",
        &["app", "worker"],
        "How often an upstream got no requests for a while because it had failed too often.",
        |sample, points| each_place(sample, points, MOST, |worker| worker.ejections),
    ),
];

const BUNGATE: &[Family] = &[
    bungate("bungate_workers_total", Kind::Gauge, "Workers that take requests.", |sample, points| {
        points.whole(&[], sample.status.apps.iter().map(|app| app.workers_ready as u64).sum());
    }),
    bungate(
        "bungate_workers_restarts_total",
        Kind::Counter,
        "Workers started in the place of others.",
        |sample, points| {
            all_workers(sample, points, |lives| lives.replaced);
        },
    ),
    bungate("bungate_workers_crashed_total", Kind::Counter, "Workers that ended unasked.", |sample, points| {
        all_workers(sample, points, |lives| lives.crashes);
    }),
    bungate("bungate_requests_total", Kind::Counter, "Requests that have ended.", |sample, points| {
        let mut all = 0;
        each_series(sample, |_, _, index| all += sample.metrics.statuses(index).values().sum::<u64>());
        points.whole(&[], all);
    }),
    bungate("bungate_request_duration_seconds", Kind::Histogram, "How long requests took.", |sample, points| {
        points.times(&[], sample.metrics.latencies());
    }),
];

fn total(sample: &Sample<'_>, points: &mut Points, read: fn(&Totals) -> u64) {
    points.whole(&[], read(&sample.metrics.total()));
}

fn each_loop(sample: &Sample<'_>, mut tell: impl FnMut(&str, super::LoopTime)) {
    for (index, time) in sample.loops.iter().enumerate() {
        if let Some(time) = time {
            tell(&index.to_string(), *time);
        }
    }
}

/// One number of all workers that ever were.
fn all_workers(sample: &Sample<'_>, points: &mut Points, read: fn(&Lives) -> u64) {
    let apps = sample.status.apps.iter().map(|app| &app.lives);
    points.whole(&[], apps.chain([&sample.status.departed]).map(read).sum());
}

fn each_app(sample: &Sample<'_>, points: &mut Points, read: fn(&App) -> u64) {
    for app in &sample.status.apps {
        points.whole(&[("app", &app.name)], read(app));
    }
}

/// Reads what one loop counts for an app.
type OfApp = fn(&AppCounters) -> u64;

/// Points of an app that its loops count, with the values of one more label; of those that nothing was counted for, too.
fn each_app_counter(sample: &Sample<'_>, points: &mut Points, label: &'static str, values: &[(&str, OfApp)]) {
    for (app, index) in sample.metrics.names().apps.iter().zip(0..) {
        for (value, read) in values {
            points.whole(&[("app", app), (label, value)], sample.metrics.of_app(index, *read));
        }
    }
}

/// What of the workers of one place is told, where one replaces the other.
type Fold = fn(&[u64]) -> u64;

const SUM: Fold = |values| values.iter().sum();
const LEAST: Fold = |values| values.iter().copied().min().unwrap_or(0);
const MOST: Fold = |values| values.iter().copied().max().unwrap_or(0);

/// One point for each place.
fn each_place(sample: &Sample<'_>, points: &mut Points, fold: Fold, read: fn(&Worker) -> Option<u64>) {
    places(sample, |app, place, workers| {
        let values: Vec<u64> = workers.iter().filter_map(|worker| read(worker)).collect();
        if !values.is_empty() {
            points.whole(&[("app", app), ("worker", place)], fold(&values));
        }
    });
}

/// Calls back for each place with its app, its number and its workers.
fn places(sample: &Sample<'_>, mut tell: impl FnMut(&str, &str, &[&Worker])) {
    for app in &sample.status.apps {
        let mut places: BTreeMap<u32, Vec<&Worker>> = BTreeMap::new();
        app.workers.iter().for_each(|worker| places.entry(worker.id).or_default().push(worker));
        places.iter().for_each(|(place, workers)| tell(&app.name, &place.to_string(), workers));
    }
}

/// Calls back for each series with its app, its route and its number.
fn each_series(sample: &Sample<'_>, mut tell: impl FnMut(&str, &str, u16)) {
    let names = sample.metrics.names();
    for (series, index) in names.series.iter().zip(0..) {
        let app = series.app.and_then(|app| names.apps.get(usize::from(app)));
        tell(app.map_or("", String::as_str), &series.route, index);
    }
}
