//! The conformance suite of the backends: one body for each case, run against every backend that is compiled.
//!
//! Beside what a case asserts itself, [`rig::Rig`] checks every event against the rules of the contract: nothing comes
//! for a dead name, a receive comes only where one was armed and at most once per socket and turn, each half fails at
//! most once, Close comes exactly once and last. Cases that touch limits of the process run in a process of their own.

mod behind;
mod closing;
mod connecting;
mod exhaustion;
#[cfg(backend_io_uring)]
mod oldest;
mod rig;
mod streaming;
mod waiting;

/// Instantiates the cases, each named by its module and function, for one backend.
macro_rules! instantiate {
    ($backend:ty; $($module:ident { $($case:ident)* })*; alone $($alone_module:ident { $($alone:ident)* })*) => {
        $($(
            #[test]
            fn $case() {
                super::$module::$case::<$backend>();
            }
        )*)*
        $($(
            #[test]
            fn $alone() {
                let name = concat!(module_path!(), "::", stringify!($alone));
                super::rig::in_own_process(name, super::$alone_module::$alone::<$backend>);
            }
        )*)*
    };
}

/// The list of all cases; those behind `alone` run in a process of their own.
macro_rules! conformance {
    ($backend:ty) => {
        instantiate! {
            $backend;
            streaming {
                echo_over_tcp
                echo_over_unix
                many_sockets_echo_in_turns
                gathered_sends_reach_a_slow_reader_in_order
                a_long_transfer_arrives_whole_in_large_blocks
                large_receives_fall_back_to_small_blocks
                long_transfers_take_turns_and_who_wants_little_does_not_wait
                arming_twice_receives_once
                end_comes_right_behind_the_data
                a_half_closed_peer_gets_its_answer
                finish_leaves_after_the_outbox
                what_may_have_left_counts_as_offered
                urgent_data_hides_nothing
                an_idle_connection_sees_the_end_at_once
                a_reset_fails_the_receive
                a_failed_send_leaves_an_early_answer_readable
            }
            behind {
                full_is_told_once_and_what_waits_lies_on_the_heap
                tiny_pieces_for_a_peer_that_is_behind_cost_little
                room_is_told_when_it_was_asked_for
                what_waits_for_a_connect_lies_on_the_heap
                what_a_peer_has_read_is_acknowledged
                a_close_waits_for_a_peer_that_acknowledges
                what_accepted_sockets_took_is_counted
                a_file_leaves_from_where_it_lies
                files_take_turns
                a_file_for_nobody_fails
            }
            closing {
                close_now_with_a_receive_armed
                close_flushed_with_a_receive_armed
                close_reset_with_a_receive_armed
                the_time_for_a_close_counts_from_it
                an_index_is_used_again_only_after_close
                close_now_inside_of_a_turn_silences_the_socket
                reset_cuts_what_is_queued
                flushed_delivers_everything
                the_last_bytes_share_the_segment_of_the_fin
                flushed_lingers_for_a_peer_that_still_sends
                finish_and_flushed_linger_though_a_receive_is_armed
                input_that_came_unseen_resets_nothing
                lingering_ends_when_its_time_is_over
                flushed_to_a_peer_that_never_reads_ends
                a_steady_slow_reader_outlives_the_stall_time
                a_reader_that_pauses_longer_than_the_linger_time_gets_all
                a_harsher_close_cuts_a_flushed_one_short
                calls_on_dead_names_do_nothing
                a_closed_listener_refuses
                a_pause_does_not_keep_a_listener_from_its_end
            }
            connecting {
                connect_over_unix
                connect_over_tcp
                sends_queued_before_connect_leave
                refused_connects_fail
                a_full_unix_backlog_is_no_refusal
                close_while_connecting
                peers_are_named
                accepts_come_in_batches
                pause_and_resume
            }
            waiting {
                timeouts_are_kept
                the_bell_wakes_from_another_thread
                a_ring_while_awake_is_not_lost
                many_rings_are_merged
                a_starved_pool_parks_receives
                workers_are_served_while_clients_starve
                a_full_table_keeps_connections_waiting
                connections_that_must_wait_let_the_loop_sleep
                a_closed_listener_that_lives_on_elsewhere_is_not_heard_of
            };
            alone
            exhaustion {
                no_descriptors_left
                no_more_is_taken_ahead_than_was_said
                one_descriptor_is_spared_for_a_worker
                dropping_the_backend_frees_everything
                broken_pipes_raise_no_signal
            }
        }
    };
}

#[cfg(backend_readiness)]
mod readiness {
    conformance!(production_server::backends::readiness::Readiness);
}

#[cfg(backend_io_uring)]
mod io_uring {
    conformance!(production_server::backends::io_uring::IoUring);
}

/// The flags of newer kernels change when completions come, and in what order.
#[cfg(backend_io_uring)]
mod io_uring_of_oldest_kernel {
    conformance!(super::oldest::OldestIoUring);
}
