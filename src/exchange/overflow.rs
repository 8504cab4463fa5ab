//! [`Overflow`]: how a layer treats the events of its hooks at capacity. And the events that wait for capacity.

use std::{
    panic::Location,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::runtime;
use tracing::Span;

use crate::{
    context::{self, Ticket},
    event::{self, BoxedEvent},
    exchange::State,
    registry::{QueuedSlot, Stage},
    util::{deadline::Deadline, panic::catch},
};

/// How a layer treats the events of its hooks at capacity, set by [`overflow`](crate::TrackEventsLayer::overflow).
///
/// It applies to the events of the layer: [`track`](crate::TrackEventsLayer::track),
/// [`track_when`](crate::TrackEventsLayer::track_when) and
/// [`track_from_request`](crate::TrackEventsLayer::track_from_request). An event that a handler or the application
/// tracks is always rejected at once, with [`TrackError::Full`](crate::TrackError::Full).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use tower_track_events::{Exchange, Overflow, TrackEventsHandle, TrackEventsLayer};
///
/// # async fn write_row(exchange: Exchange) {}
/// let layer = TrackEventsLayer::new(TrackEventsHandle::new())
///     .track("audit", write_row)
///     .overflow(Overflow::Wait(Duration::from_millis(50)));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// The event is rejected, dropped and counted, and the request is served without it. The default.
    #[default]
    Reject,
    /// The request waits for capacity for its events, at most for this long. Then the events are rejected, and the
    /// request is served.
    ///
    /// The request waits before the future of the inner service is polled for the first time: first come, first served.
    /// No thread is blocked. A slot that becomes free goes to the first request that waits, not to an event that is
    /// tracked later. A request without an event of the layer does not wait. If the client leaves meanwhile, the events
    /// are rejected.
    ///
    /// Choose a time shorter than the timeout of a health probe: idle streams can occupy all of the capacity while they
    /// are open. On a runtime without timers the events are rejected at once.
    ///
    /// The [last call](crate::TrackEventsHandle::make_last_call) ends the wait: the request goes on, and its events are
    /// rejected. After it no request waits.
    Wait(Duration),
}

/// The events of one exchange that wait for capacity.
pub(crate) struct WaitingEvents {
    state: Arc<State>,
    events: Vec<WaitingEvent>,
    deadline: Deadline,
}

pub(crate) struct WaitingEvent {
    pub(crate) name: &'static str,
    pub(crate) location: &'static Location<'static>,
    /// The event, or the message of the hook's panic.
    pub(crate) event: Result<BoxedEvent, String>,
    pub(crate) span: Option<Span>,
    pub(crate) runtime: runtime::Handle,
    pub(crate) slot: QueuedSlot<context::Context>,
}

impl WaitingEvents {
    pub(crate) fn new(state: &Arc<State>, events: Vec<WaitingEvent>, limit: Duration) -> Self {
        Self { state: Arc::clone(state), events, deadline: Deadline::after(limit) }
    }

    /// Returns `Ready` when each event has been accepted or rejected.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut index = 0;
        while let Some(event) = self.events.get_mut(index) {
            match event.slot.poll(cx.waker()) {
                Poll::Ready(Some(permit)) => self.events.remove(index).accept(&self.state, permit),
                Poll::Ready(None) => self.events.remove(index).reject(&self.state),
                Poll::Pending => index += 1,
            }
        }
        if self.events.is_empty() {
            return Poll::Ready(());
        }
        // Without a timer the limit cannot be measured, so the events are rejected at once.
        if self.deadline.poll(cx).unwrap_or(true) {
            self.reject();
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn reject(&mut self) {
        self.events.drain(..).for_each(|event| event.reject(&self.state));
    }
}

impl WaitingEvent {
    fn accept(self, state: &State, permit: Ticket) {
        let Self { name, location, event, span, runtime, slot } = self;
        drop(slot);
        keep_or_end(state, permit.fill(name, Stage::Waiting, location), event, span, runtime);
    }

    fn reject(self, state: &State) {
        let Self { name, event, slot, .. } = self;
        drop(slot);
        // Counted and logged before the event is dropped, because its destructor is user code.
        state.shard.reject_full(name);
        let _ = catch(|| drop(event));
    }
}

/// Keeps an event of a hook that was accepted, or ends it if its hook has panicked.
pub(crate) fn keep_or_end(
    state: &State,
    ticket: Ticket,
    event: Result<BoxedEvent, String>,
    span: Option<Span>,
    runtime: runtime::Handle,
) {
    match event {
        Ok(event) => state.keep(event, ticket, span, runtime),
        Err(panic) => event::end_panicked(ticket, span, &panic),
    }
}

/// Dropped while events wait, when the client has left or a timeout around the layer has passed.
impl Drop for WaitingEvents {
    fn drop(&mut self) {
        self.reject();
    }
}
