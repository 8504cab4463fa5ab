//! Which traits the public types have, and that no bound is needless.

use std::{future::pending, marker::PhantomPinned, rc::Rc};

use bytes::Bytes;
use http_body_util::{Empty, Full};
use static_assertions::{assert_impl_all as is, assert_not_impl_any as is_not};
use tower_track_events::{
    Drain, DrainError, DrainGuard, DrainReport, Events, Exchange, Outcome, Permit, Refused, ResponseBody,
    ResponseFuture, Snapshot, TrackEvents, TrackEventsHandle, TrackEventsLayer, TrackEventsLayerBuilder, Unfinished,
};

is!(TrackEventsHandle: Clone, std::fmt::Debug, Send, Sync, Unpin);
// A second ledger that is made by accident drains nothing.
is_not!(TrackEventsHandle: Default);
is!(TrackEventsLayer: Clone, std::fmt::Debug, Send, Sync, Unpin);
is!(TrackEventsLayerBuilder: std::fmt::Debug, Send, Sync);
is!(Events: Clone, std::fmt::Debug, Send, Sync, Unpin);
is!(Permit: std::fmt::Debug, Send, Sync, Unpin);
is!(DrainGuard: std::fmt::Debug, Send, Sync, Unpin);
// One ticket, one ending.
is_not!(Permit: Clone);
is_not!(DrainGuard: Clone);
is!(Drain: std::fmt::Debug, Send, Unpin);
is!(DrainReport: Clone, std::fmt::Display, Send, Sync);
is!(DrainError: std::error::Error, Clone, Send, Sync);
is!(Unfinished: Clone, std::fmt::Display);
is!(Exchange: Clone, Send, Sync, Unpin);
is!(Outcome: Copy, std::fmt::Display);
is!(Snapshot: Copy, Default, PartialEq);
is!(Refused: std::error::Error, Copy, Send, Sync);

// As their inner parts are.
is!(TrackEvents<()>: Clone, std::fmt::Debug, Send, Sync, Unpin);
is_not!(TrackEvents<Rc<()>>: Send, Sync);
is!(TrackEvents<Rc<()>>: Clone, std::fmt::Debug);
is_not!(TrackEvents<PhantomPinned>: Unpin);
is!(ResponseFuture<()>: std::fmt::Debug, Send, Sync, Unpin);
is_not!(ResponseFuture<Rc<()>>: Send, Sync);
is_not!(ResponseFuture<PhantomPinned>: Unpin);
is!(ResponseBody<Full<Bytes>>: Default, std::fmt::Debug, Send, Sync, Unpin);
is!(ResponseBody<Empty<Bytes>>: Default);

#[test]
fn what_a_handle_gives_is_static_and_send() {
    fn is_static_and_send<T: Send + 'static>(_: &T) {}
    let handle = TrackEventsHandle::new();
    let (draining, drain, until) =
        (handle.draining(), handle.drain(std::time::Duration::ZERO), handle.drain_until(pending::<()>()));
    drop(handle);
    is_static_and_send(&draining);
    is_static_and_send(&drain);
    is_static_and_send(&until);
}
