//! The ledger as it is released holds in every execution.

use tower_track_events_models::{Order, models};

#[test]
fn a_drain_ends_when_nothing_is_open_and_then_nothing_is_accepted() {
    models::admission_against_drain();
    models::three_producers();
}

#[test]
fn a_drain_cannot_sleep_through_the_last_leave() {
    models::last_leave_against_registration(Order::RegistersThenLooks);
    models::drain_that_is_given_up();
}

#[test]
fn a_pending_event_can_record_another_until_the_end() {
    models::revival_against_last_leave();
}

#[test]
fn two_drains_agree_and_both_end() {
    models::two_drains();
}

#[test]
fn every_accepted_event_is_pending_or_ended_at_every_instant() {
    models::conservation();
}

#[test]
fn the_capacity_is_all_there_is_and_can_all_be_had() {
    models::four_takers_who_keep();
    models::four_takers_who_give_back();
    models::room_in_another_shard();
}

#[test]
fn whoever_holds_an_aborted_event_hears_of_it() {
    models::abort_against_hold();
    models::abort_against_record();
    models::abort_against_end();
}

#[test]
fn a_wait_for_idleness_ends_with_the_events_before_it() {
    models::idle_wait_against_ends();
    models::two_idle_waits();
}

#[test]
fn room_that_is_waited_for_goes_to_the_first_in_the_queue_once() {
    models::queue_against_end();
    models::grant_against_leaving();
    models::grant_against_poll();
    models::owed_room();
    models::first_in_first_out();
    models::queue_against_drain();
}

#[test]
fn what_is_sent_to_a_sink_is_an_event_like_any_other() {
    models::sends_against_drain();
    models::counts_of_a_lane();
    models::wait_against_lane();
}

#[test]
fn an_event_that_begins_has_a_task_and_ends_once() {
    models::starts_against_tasks(false);
    models::starts_against_tasks(true);
    models::start_against_turns();
    models::next_against_drop();
    models::end_and_take_against_drain();
}
