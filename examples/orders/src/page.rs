//! The page that shows the state of the service, and the WebSocket behind it.

use std::{path::Path, process, time::Duration};

use axum::{
    Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, WebSocket},
    },
    response::{Html, Response},
    routing::get,
};
use serde::Serialize;
use tokio::{
    select,
    sync::watch,
    time::{Instant, interval, timeout},
};
use tower_track_events::{ShutdownReport, SinkSnapshot, TrackEventsHandle};

/// The pages that are open.
#[derive(Clone)]
pub(crate) struct Pages {
    handle: TrackEventsHandle,
    end: watch::Sender<Option<End>>,
}

/// How the shutdown ended.
#[derive(Clone, Serialize)]
struct End {
    every_order_is_written: bool,
    text: String,
}

/// What a page shows.
#[derive(Serialize)]
struct Live {
    orders: Option<SinkSnapshot>,
    open_requests: u64,
    is_draining: bool,
    drain_left_ms: Option<u64>,
    /// In the last message.
    end: Option<End>,
}

impl Pages {
    pub(crate) fn new(handle: TrackEventsHandle) -> Self {
        Self { handle, end: watch::Sender::new(None) }
    }

    /// No layer is around these routes: the drain, which they show, would wait for them.
    pub(crate) fn routes(self) -> Router {
        Router::new().route("/", get(page)).route("/live", get(live)).with_state(self)
    }

    /// Waits until every open page has the result. A page that does not read delays the exit by 100 ms.
    pub(crate) async fn end(self, report: &ShutdownReport, undelivered: &Path) {
        self.end.send_replace(Some(self.result(report, undelivered)));
        let _ = timeout(Duration::from_millis(100), self.end.closed()).await;
    }

    fn result(&self, report: &ShutdownReport, undelivered: &Path) -> End {
        let counts = self.handle.snapshot();
        let (accepted, failed) = (counts.accepted, counts.ended.failed);
        let every_order_is_written = report.exit_code() == 0 && counts.ended.completed == accepted;
        let text = if every_order_is_written {
            "drained: every order is written".to_owned()
        } else if failed > 0 && counts.ended.completed + failed == accepted {
            format!("not written: {failed} of {accepted} orders, which are in {}", undelivered.display())
        } else {
            report.to_string()
        };
        End { every_order_is_written, text }
    }

    fn live(&self) -> Live {
        let left = self.handle.drain_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Live {
            orders: self.handle.sinks().pop(),
            open_requests: self.handle.snapshot().open_requests,
            is_draining: self.handle.is_draining(),
            drain_left_ms: left.map(|left| left.as_millis() as u64),
            end: self.end.borrow().clone(),
        }
    }

    async fn send(self, mut socket: WebSocket) {
        let mut end = self.end.subscribe();
        let mut ticks = interval(Duration::from_millis(100));
        loop {
            let is_last = select! {
                _ = ticks.tick() => false,
                _ = end.wait_for(Option::is_some) => true,
            };
            let live = serde_json::to_string(&self.live()).expect("its keys are strings");
            if socket.send(Message::text(live)).await.is_err() || is_last {
                return;
            }
        }
    }
}

async fn page() -> Html<String> {
    Html(include_str!("page.html").replace("{pid}", &process::id().to_string()))
}

/// A stopping server waits for a response that streams, and not for a WebSocket. So a page sees the whole shutdown, and
/// does not delay it.
async fn live(State(pages): State<Pages>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|socket| pages.send(socket))
}
