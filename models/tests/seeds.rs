//! Each bug is found, by the assertion that is meant.

use tower_track_events_models::{Order, models, seeded};

#[test]
#[should_panic(expected = "nobody woke the drain")]
fn a_drain_that_looks_before_it_registers_is_found() {
    models::last_leave_against_registration(Order::LooksThenRegisters);
}

#[test]
#[should_panic(expected = "nobody woke the drain")]
fn a_leave_that_wakes_nobody_is_found() {
    seeded::leave_wakes_nobody::models::last_leave_against_registration(Order::RegistersThenLooks);
}

#[test]
#[should_panic(expected = "nobody woke the drain")]
fn a_leave_that_asks_for_waiters_too_early_is_found() {
    seeded::leave_asks_for_waiters_before_it_locks::models::last_leave_against_registration(Order::RegistersThenLooks);
}

#[test]
#[should_panic(expected = "the drain was over before an event's write")]
fn a_close_before_the_last_write_is_found() {
    seeded::close_does_not_look_for_entries::models::admission_against_drain();
}

#[test]
#[should_panic(expected = "the drain was over while an event was pending")]
fn a_close_that_does_not_look_for_entries_is_found() {
    seeded::close_does_not_look_for_entries::models::last_leave_against_registration(Order::RegistersThenLooks);
}

#[test]
#[should_panic(expected = "the drain was over while an event was pending")]
fn a_close_that_misses_a_revival_is_found() {
    seeded::close_looks_at_one_shard_after_the_other::models::revival_against_last_leave();
}

#[test]
#[should_panic(expected = "an event was accepted after the drain")]
fn a_close_that_leaves_a_shard_open_is_found() {
    seeded::close_leaves_a_shard_open::models::admission_against_drain();
}

#[test]
#[should_panic(expected = "nobody woke the drain")]
fn a_close_that_another_drain_does_not_hear_of_is_found() {
    seeded::close_wakes_nobody::models::two_drains();
}

#[test]
#[should_panic(expected = "an event is neither pending nor ended")]
fn an_ending_that_is_counted_too_late_is_found() {
    seeded::ending_is_counted_after_the_lock::models::conservation();
}

#[test]
#[should_panic(expected = "there is more than the capacity allows")]
fn room_that_is_given_twice_is_found() {
    seeded::room_is_given_twice::models::four_takers_who_keep();
}

#[test]
#[should_panic(expected = "not all room can be had")]
fn a_verdict_under_one_lock_is_found() {
    seeded::verdict_is_full_under_one_lock::models::room_in_another_shard();
}

#[test]
#[should_panic(expected = "nobody woke an event that is to be aborted")]
fn an_abort_that_is_said_too_late_is_found() {
    seeded::abort_is_said_after_its_locks::models::abort_against_hold();
}

#[test]
#[should_panic(expected = "nobody woke an event that is to be aborted")]
fn a_hold_that_asks_too_early_is_found() {
    seeded::hold_asks_before_it_locks::models::abort_against_hold();
}

#[test]
#[should_panic(expected = "nobody woke the wait for idleness")]
fn a_wait_that_begins_too_late_is_found() {
    seeded::wait_begins_after_its_locks::models::idle_wait_against_ends();
}

#[test]
#[should_panic(expected = "a wait was over while an event was pending")]
fn a_wait_that_counts_later_events_is_found() {
    seeded::wait_is_for_later_events_too::models::idle_wait_against_ends();
}

#[test]
#[should_panic(expected = "nobody woke who waits for room")]
fn a_queue_that_is_entered_too_late_is_found() {
    seeded::queue_is_entered_without_locks::models::queue_against_end();
}

#[test]
#[should_panic(expected = "a later event has taken room that was owed")]
fn a_queue_that_is_served_too_late_is_found() {
    seeded::queue_is_served_after_the_lock::models::owed_room();
}

#[test]
#[should_panic(expected = "nobody woke who waits for room")]
fn a_queue_that_serves_the_last_is_found() {
    seeded::last_in_the_queue_is_first::models::first_in_first_out();
}

#[test]
#[should_panic(expected = "nobody woke who waits for room")]
fn a_grant_that_is_lost_with_who_left_is_found() {
    seeded::grant_to_one_who_left_is_forgotten::models::grant_against_leaving();
}

#[test]
#[should_panic(expected = "nobody woke who waits for room")]
fn a_grant_that_is_lost_untaken_is_found() {
    seeded::grant_that_was_not_taken_is_forgotten::models::grant_against_leaving();
}

#[test]
#[should_panic(expected = "nobody woke who waits for room")]
fn a_poll_that_keeps_the_first_waker_is_found() {
    seeded::poll_forgets_who_polls_again::models::grant_against_poll();
}

#[test]
#[should_panic(expected = "the drain was over before an event's write")]
fn a_close_that_does_not_look_at_lanes_is_found() {
    seeded::close_does_not_look_at_lanes::models::sends_against_drain();
}

#[test]
#[should_panic(expected = "a lane is open after the drain")]
fn a_close_that_leaves_a_lane_open_is_found() {
    seeded::close_leaves_a_lane_open::models::sends_against_drain();
}

#[test]
#[should_panic(expected = "nobody woke the drain")]
fn a_lane_that_runs_empty_and_wakes_nobody_is_found() {
    seeded::empty_lane_wakes_nobody::models::sends_against_drain();
}

#[test]
#[should_panic(expected = "an event is neither pending nor ended")]
fn a_count_of_the_lanes_before_the_shards_is_found() {
    seeded::lanes_are_counted_before_the_shards::models::counts_of_a_lane();
}

#[test]
#[should_panic(expected = "nobody woke the wait")]
fn a_lane_that_reaches_no_wait_is_found() {
    seeded::lane_reaches_no_wait::models::wait_against_lane();
}

#[test]
#[should_panic(expected = "an abort has left an event")]
fn an_abort_that_forgets_what_is_recorded_is_found() {
    seeded::abort_forgets_what_is_recorded::models::abort_against_record();
}

#[test]
#[should_panic(expected = "an abort has left an event")]
fn an_event_that_is_recorded_after_its_abort_is_found() {
    seeded::recorded_after_an_abort_is_kept::models::abort_against_record();
}

#[test]
#[should_panic(expected = "a drain that was given up has left its waker")]
fn a_drain_that_is_given_up_and_leaves_its_waker_is_found() {
    seeded::given_up_drain_leaves_its_waker::models::drain_that_is_given_up();
}

#[test]
#[should_panic(expected = "nobody woke the drain")]
fn a_drain_that_is_given_up_and_hides_another_is_found() {
    seeded::given_up_drain_says_that_nobody_waits::models::drain_that_is_given_up();
}

#[test]
#[should_panic(expected = "an event has no task")]
fn a_line_to_which_nobody_is_sent_is_found() {
    seeded::arrival_sends_nobody::models::starts_against_tasks(false);
}

#[test]
#[should_panic(expected = "an event has no task")]
fn a_last_task_that_leaves_the_line_behind_is_found() {
    seeded::last_drop_leaves_the_line::models::starts_against_tasks(false);
}

#[test]
#[should_panic(expected = "an event has no task")]
fn a_task_that_leaves_the_line_and_sends_nobody_is_found() {
    seeded::leave_sends_nobody::models::starts_against_tasks(true);
}

#[test]
#[should_panic(expected = "nobody woke the drain")]
fn an_end_that_takes_the_next_and_wakes_nobody_is_found() {
    seeded::end_and_take_wakes_nobody::models::end_and_take_against_drain();
}
