//! What a layer does with the events of its exchanges when there is no room.

use std::{
    panic::Location,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use crate::{
    contain::contain,
    house::House,
    ledger::{PermitTicket, Room, RoomWait},
    limit::Limit,
    permit::fill,
    record::Record,
    refused::Refused,
    start::Place,
    task::UnacceptedEvent,
};

/// What a layer does with an event of its own when the house is full, set by
/// [`overflow`](crate::TrackEventsLayerBuilder::overflow).
///
/// It is about the events of [`track`](crate::TrackEventsLayerBuilder::track) and
/// [`track_when`](crate::TrackEventsLayerBuilder::track_when) of the layer. Where a handler or the application tracks
/// an event the answer is always [`Refused::Full`](crate::Refused::Full), at once.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_track_events::{Exchange, Overflow, TrackEventsHandle, TrackEventsLayer};
///
/// # async fn write_row(exchange: Exchange) {}
/// let layer = TrackEventsLayer::builder(TrackEventsHandle::new())
///     .track("audit", |_request| write_row)
///     .overflow(Overflow::Wait(Duration::from_millis(50)))
///     .build();
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// The event, which has been made, is refused, dropped and counted, and the request is served without it.
    #[default]
    Shed,
    /// The request waits until there is room for its events, at most for this long; then they are shed.
    ///
    /// It waits before the future of the inner service is polled for the first time, in the order in which requests have
    /// come, and blocks no thread. Room that is freed goes to those who wait, and not to an event that is tracked later.
    /// A request without an event of the layer does not wait. If the client leaves meanwhile, its events are shed.
    ///
    /// Choose it shorter than the timeout of a health probe: as many idle streams as the capacity allows keep all room
    /// for as long as they are open. Where the runtime has no timer the events are shed at once.
    Wait(Duration),
}

/// The events of one exchange that wait for room.
pub(crate) struct Waiting {
    record: Arc<Record>,
    events: Vec<WaitingEvent>,
    limit: Limit,
}

pub(crate) struct WaitingEvent {
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    /// The event, or the panic of the hook that was to make it.
    pub(crate) event: Result<UnacceptedEvent, String>,
    pub(crate) place: Place,
    pub(crate) room: RoomWait<House>,
}

impl Waiting {
    pub(crate) fn new(record: &Arc<Record>, events: Vec<WaitingEvent>, limit: Duration) -> Self {
        Self { record: Arc::clone(record), events, limit: Limit::after(limit) }
    }

    /// Ready when each event has been accepted or shed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut index = 0;
        while let Some(event) = self.events.get_mut(index) {
            match event.room.poll(cx.waker()) {
                Poll::Ready(permit) => self.events.remove(index).accept(&self.record, permit),
                Poll::Pending => index += 1,
            }
        }
        if self.events.is_empty() {
            return Poll::Ready(());
        }
        // A limit that cannot be measured is over.
        if self.limit.poll(cx).unwrap_or(true) {
            self.shed();
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn shed(&mut self) {
        for WaitingEvent { name, event, room, .. } in self.events.drain(..) {
            let _ = contain(|| drop(event));
            drop(room);
            self.record.shard.shed(name);
        }
    }
}

impl WaitingEvent {
    fn accept(self, record: &Arc<Record>, permit: PermitTicket<House>) {
        let Self { name, location, event, place, room } = self;
        drop(room);
        let launch = fill(permit, place, name, Some(record), location);
        match event {
            Ok(event) => record.add(launch, |ticket, cause| event.accepted(ticket, cause)),
            Err(panic) => launch.panicked(panic),
        }
    }
}

/// The client has left, or a timeout around the layer ran out.
impl Drop for Waiting {
    fn drop(&mut self) {
        self.shed();
    }
}

/// Takes room for an event of a layer, or a place in the queue for it.
pub(crate) fn room_for(
    record: &Record,
    name: &'static str,
    location: &'static Location<'static>,
) -> Result<(Place, Room<House>), Refused> {
    let place = record.place(name)?;
    Ok((place, record.shard.room(name, location)?))
}
