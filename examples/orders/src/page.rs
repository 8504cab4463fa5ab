//! The page that shows the state of the service, and the stream behind it.

use std::{future::ready, time::Duration};

use axum::{
    extract::State,
    response::{
        Html,
        sse::{Event, Sse},
    },
};
use futures_util::{Stream, StreamExt};
use serde::Serialize;
use tokio::time::{Instant, interval};
use tokio_stream::wrappers::IntervalStream;
use tower_track_events::{SinkSnapshot, Snapshot};

use crate::Shop;

pub(crate) async fn page() -> Html<&'static str> {
    Html(include_str!("page.html"))
}

/// The state that the page shows.
#[derive(Serialize)]
struct Live {
    #[serde(flatten)]
    counts: Snapshot,
    sinks: Vec<SinkSnapshot>,
    drain_left_ms: Option<u64>,
}

impl Live {
    fn of(shop: &Shop) -> Self {
        let left = shop.handle.drain_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Self {
            counts: shop.handle.snapshot(),
            sinks: shop.handle.sinks(),
            drain_left_ms: left.map(|left| left.as_millis() as u64),
        }
    }

    /// Whether this is the last state to show.
    fn is_drained(&self) -> bool {
        self.drain_left_ms.is_some() && self.counts.open_requests == 0 && self.counts.pending == 0
    }
}

/// Ends when the drain has nothing more to wait for, so that the server can stop.
pub(crate) async fn live(State(shop): State<Shop>) -> Sse<impl Stream<Item = Result<Event, axum::Error>>> {
    let ticks = IntervalStream::new(interval(Duration::from_millis(100)));
    let states = ticks.scan(false, move |is_over, _| {
        let live = Live::of(&shop);
        let state = (!*is_over).then(|| Event::default().json_data(&live));
        *is_over = live.is_drained();
        ready(state)
    });
    Sse::new(states)
}
