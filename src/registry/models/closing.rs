//! The phase `Closing`.

use loom::thread;

use crate::{
    error::TrackError,
    registry::models::{Depth, Drain, Quiet, World, finds, models},
};

models! {
    /// A late request, while an event is pending: it is accepted, and while it is open nothing is rejected.
    late_request_against_closing: Depth::Any, {
        let world = World::new(4);
        let pending = world.must_track(1);
        let request = thread::spawn({
            let world = world.clone();
            move || {
                let request = world.open_request(0);
                world.expect(request.is_some(), "a request was not counted while an event was pending");
                let from_outside = world.must_track(1);
                world.end(from_outside);
                drop(request);
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        // The drain may look at any time.
        drain.poll();
        drain.poll();
        request.join().unwrap();
        drain.poll_on();
        assert!(drain.is_closing, "nobody woke the drain");
        world.end(pending);
        drain.finish();
        world.check_drained();
    }

    /// A late guard, taken inside an event: it is accepted, and while it is held nothing is rejected.
    late_guard_against_closing: Depth::Any, {
        let world = World::new(4);
        let pending = world.must_track(1);
        let inside = thread::spawn({
            let world = world.clone();
            move || {
                let guard = world.inside(|| world.guard(1));
                world.expect(guard.is_ok(), "a guard was rejected inside an event");
                let from_outside = world.must_track(0);
                world.end(pending.into_iter().chain(from_outside));
                drop(guard);
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll_twice();
        inside.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// A late request against the end of the last event and the close: it is counted, or the registry is closed.
    late_request_against_the_close: Depth::AtMost(3), {
        let world = World::new(4);
        let last = world.must_track(1);
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll();
        assert!(drain.is_closing);
        let ending = thread::spawn({
            let world = world.clone();
            move || world.end(last)
        });
        let request = thread::spawn({
            let world = world.clone();
            move || {
                if let Some(request) = world.open_request(0) {
                    let from_outside = world.must_track(1);
                    world.end(from_outside);
                    drop(request);
                } else {
                    world.expect(world.track(1).is_err(), "a request was not counted and the registry is open");
                }
            }
        });
        drain.poll_on();
        ending.join().unwrap();
        request.join().unwrap();
        drain.finish();
        world.check_drained();
    }

    /// A producer from outside against closing: its event is rejected and counted as rejected, or the drain waits for
    /// it.
    producer_against_closing: Depth::Any, {
        let world = World::new(4);
        let pending = world.must_track(1);
        let producer = thread::spawn({
            let world = world.clone();
            move || {
                let tracked = world.track(0);
                let is_rejected = tracked.as_ref().is_err_and(|error| *error == TrackError::Closed);
                world.expect(is_rejected || tracked.is_ok(), "an event was rejected as full");
                world.end(tracked);
                is_rejected
            }
        });
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll();
        assert!(drain.is_closing, "no request was open");
        assert!(world.track(1).is_err(), "an event from outside was accepted while the drain was closing");
        let is_rejected = producer.join().unwrap();
        let now = world.look();
        assert_eq!(now.rejected_closed, 1 + u64::from(is_rejected), "a rejection was not counted");
        world.end(pending);
        drain.finish();
        world.check_drained();
    }

    /// Two drains are dropped at once: everything is accepted again.
    two_drains_are_dropped: Depth::Any, {
        let world = World::new(4);
        let pending = world.must_track(1);
        let mut drains = [(); 2].map(|()| Drain::new(&world, Quiet::None));
        drains.iter_mut().for_each(Drain::poll);
        assert!(drains.iter().all(|drain| drain.is_closing), "no request was open");
        let [first, second] = drains;
        let dropping = thread::spawn(move || drop(first));
        drop(second);
        dropping.join().unwrap();
        let from_outside = world.must_track(0);
        world.end(pending.into_iter().chain(from_outside));
        world.check_empty();
    }

    /// A drain is dropped while another one begins to close: the phase stays `Closing`.
    dropped_drain_against_closing: Depth::Any, {
        let world = World::new(4);
        let pending = world.must_track(1);
        let mut dropped = Drain::new(&world, Quiet::None);
        dropped.poll();
        let dropping = thread::spawn(move || drop(dropped));
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll();
        assert!(drain.is_closing, "no request was open");
        dropping.join().unwrap();
        assert!(world.track(0).is_err(), "an event from outside was accepted while a drain was closing");
        world.end(pending);
        drain.finish();
        world.check_drained();
    }

    /// A drain is dropped while a request is opened and an event from outside is tracked.
    dropped_drain_against_late_request: Depth::Any, {
        let world = World::new(4);
        let pending = world.must_track(1);
        let mut drain = Drain::new(&world, Quiet::None);
        drain.poll();
        let dropping = thread::spawn(move || drop(drain));
        let request = world.open_request(0);
        assert!(request.is_some(), "a request was not counted while an event was pending");
        let from_outside = world.must_track(1);
        dropping.join().unwrap();
        drop(request);
        world.end(pending.into_iter().chain(from_outside));
        world.check_empty();
    }
}

finds! {
    request_enters_a_closed_registry:
        "a request does not look at the phase again",
        late_request_against_the_close, "something was accepted after the drain";
    closed_registry_is_opened:
        "what is closed is opened again", late_request_against_the_close, "something was accepted after the drain";
    request_reopens_under_two_locks:
        "a request opens the registry again under an earlier lock",
        late_request_against_closing, "a request was not counted while an event was pending";
    shard_stays_closed:
        "a change of the phase leaves a shard out",
        late_request_against_closing, "an event was rejected that had to be accepted";
    drain_leaves_in_two_steps:
        "a drain leaves in two steps",
        two_drains_are_dropped, "an event was rejected that had to be accepted";
    dropped_drain_opens_under_another:
        "a drain that is dropped does not look for others again",
        dropped_drain_against_closing, "an event from outside was accepted while a drain was closing";
}
