//! The feature `axum`: `Events` as an extractor, errors as responses.

use std::{convert::Infallible, error::Error, fmt};

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

#[cfg(feature = "sink")]
use crate::sink::{AckError, TrySendError};
use crate::{error::TrackError, exchange::Events};

/// Extracts the [`Events`] of the exchange.
///
/// Without a [`TrackEventsLayer`](crate::TrackEventsLayer) around the handler the response is 500, with a message that
/// names the layer. Extract `Option<Events>` where the layer may be missing.
impl<S: Send + Sync> FromRequestParts<S> for Events {
    type Rejection = MissingTrackEventsLayer;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, MissingTrackEventsLayer> {
        Self::from_extensions(&parts.extensions).cloned().ok_or(MissingTrackEventsLayer)
    }
}

/// Extracts the [`Events`] of the exchange, or `None` without a [`TrackEventsLayer`](crate::TrackEventsLayer) around
/// the handler.
impl<S: Send + Sync> OptionalFromRequestParts<S> for Events {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Option<Self>, Infallible> {
        Ok(Self::from_extensions(&parts.extensions).cloned())
    }
}

/// The error of the [`Events`] extractor: there is no [`TrackEventsLayer`](crate::TrackEventsLayer) around the handler.
///
/// As a response it is 500, with a message that names the layer.
///
/// # Examples
///
/// ```
/// use axum::response::{IntoResponse, Response};
/// use tower_track_events::{Events, MissingTrackEventsLayer};
///
/// async fn handler(events: Result<Events, MissingTrackEventsLayer>) -> Response {
///     match events {
///         Ok(_events) => "tracked".into_response(),
///         Err(missing) => missing.into_response(), // 500
///     }
/// }
/// # let app: axum::Router = axum::Router::new().route("/", axum::routing::get(handler));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MissingTrackEventsLayer;

impl fmt::Display for MissingTrackEventsLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "`Events` needs a `TrackEventsLayer` around this handler: add `.layer(TrackEventsLayer::new(handle))`",
        )
    }
}

impl Error for MissingTrackEventsLayer {}

impl IntoResponse for MissingTrackEventsLayer {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

/// Responds with 503, so that a client or a load balancer tries another instance.
///
/// The body is the text of the error. Map the error if clients should not see that text.
impl IntoResponse for TrackError {
    fn into_response(self) -> Response {
        (StatusCode::SERVICE_UNAVAILABLE, self.to_string()).into_response()
    }
}

/// Responds with 503, like [`TrackError`]. The event is dropped.
#[cfg(feature = "sink")]
impl<E> IntoResponse for TrySendError<E> {
    fn into_response(self) -> Response {
        self.reason.into_response()
    }
}

/// Responds with 503 if the event was rejected, and with 500 if it was not delivered.
///
/// The body of the 500 is `not stored`, without the error of the store.
#[cfg(feature = "sink")]
impl<E> IntoResponse for AckError<E> {
    fn into_response(self) -> Response {
        match self {
            Self::NotSent(error) => error.into_response(),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "not stored").into_response(),
        }
    }
}
