//! The settings, from the environment.

use std::{env, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

pub(crate) struct Settings {
    pub(crate) addr: SocketAddr,
    pub(crate) db: PathBuf,
    /// How slow the store is with each batch.
    pub(crate) event_delay: Duration,
    pub(crate) drain_limit: Duration,
    /// Whether an order is answered when it is stored, and not when it is accepted.
    pub(crate) ack: bool,
}

impl Settings {
    pub(crate) fn from_env() -> Result<Self, String> {
        let db = env::var_os("EVENTS_DB").map(PathBuf::from);
        Ok(Self {
            addr: variable("ADDR", "an IP address and a port, such as 127.0.0.1:3000")?
                .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 3000))),
            db: db.unwrap_or_else(|| env::temp_dir().join("tower-track-events-orders.db")),
            event_delay: milliseconds("EVENT_DELAY_MS", 1)?,
            drain_limit: milliseconds("DRAIN_LIMIT_MS", 5000)?,
            ack: variable::<u8>("ACK", "0 or 1")?.unwrap_or(0) != 0,
        })
    }

    /// The file for orders that could not be written in time.
    pub(crate) fn undelivered(&self) -> PathBuf {
        let mut path = self.db.clone().into_os_string();
        path.push(".undelivered.jsonl");
        path.into()
    }
}

fn milliseconds(name: &str, default: u32) -> Result<Duration, String> {
    let value: Option<u32> = variable(name, "a number of milliseconds from 0 to 4294967295")?;
    Ok(Duration::from_millis(value.unwrap_or(default).into()))
}

fn variable<T: FromStr>(name: &str, allowed: &str) -> Result<Option<T>, String> {
    let Some(value) = env::var_os(name) else { return Ok(None) };
    let parsed = value.to_str().and_then(|text| text.parse().ok());
    parsed.map(Some).ok_or_else(|| format!("{name} must be {allowed}, and is {value:?}"))
}
