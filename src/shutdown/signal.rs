//! [`Signals`]: the first and the second signal of the operating system.

use std::{
    process,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{runtime, time::Instant};

pub(super) use self::os::OsSignals;

/// A signal within this time after the first one does not count as the second: shells and supervisors send it twice.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// A signal of the operating system.
#[derive(Clone, Copy, Debug)]
pub(super) struct OsSignal {
    pub(super) name: &'static str,
    /// The exit code of a process that this signal ends.
    exit_code: i32,
    /// The longest limit that ends before the operating system kills the process.
    pub(super) longest_limit: Duration,
}

impl OsSignal {
    #[cfg(all(feature = "signal", any(unix, windows)))]
    const fn new(name: &'static str, exit_code: i32, longest_limit: Duration) -> Self {
        Self { name, exit_code, longest_limit }
    }
}

/// The signals that the shutdown listens to. `None` if the user set a future instead.
pub(super) struct Signals {
    os: Option<OsSignals>,
    first: Option<Instant>,
    has_second: bool,
}

impl Signals {
    pub(super) fn new(os: Option<OsSignals>) -> Self {
        Self { os, first: None, has_second: false }
    }

    pub(super) fn poll_first(&mut self, cx: &mut Context<'_>) -> Poll<OsSignal> {
        let signal = self.os.as_mut().map_or(Poll::Pending, |os| os.poll_recv(cx));
        if signal.is_ready() {
            self.first = Some(Instant::now());
        }
        signal
    }

    /// Returns whether there was a second signal. If `begin_drain` or the end of the servers began the shutdown, two
    /// signals are needed: the orchestrator often sends its first one then.
    pub(super) fn poll_second(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(os) = &mut self.os else { return false };
        while !self.has_second && os.poll_recv(cx).is_ready() {
            let first = *self.first.get_or_insert_with(Instant::now);
            self.has_second = first.elapsed() >= SAME_SIGNAL;
        }
        self.has_second
    }

    /// Ends the process at the next signal. After a shutdown nothing else listens, and the operating system does not
    /// end a process that has a handler for the signal.
    pub(super) fn exit_at_next(self) {
        if let (Some(mut os), Ok(runtime)) = (self.os, runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let signal = std::future::poll_fn(|cx| os.poll_recv(cx)).await;
                process::exit(signal.exit_code)
            });
        }
    }
}

#[cfg(all(feature = "signal", unix))]
mod os {
    use std::{
        io,
        task::{Context, Poll},
        time::Duration,
    };

    use tokio::signal::unix::{Signal, SignalKind, signal};

    use super::OsSignal;

    const TERMINATE: OsSignal = OsSignal::new("SIGTERM", 128 + 15, Duration::MAX);
    const INTERRUPT: OsSignal = OsSignal::new("SIGINT", 128 + 2, Duration::MAX);

    pub(crate) struct OsSignals {
        terminate: Signal,
        interrupt: Signal,
    }

    impl OsSignals {
        pub(super) fn register_on_this_runtime() -> io::Result<Self> {
            Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
        }

        pub(super) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<OsSignal> {
            // Both are polled, to be woken by both.
            let (terminate, interrupt) = (self.terminate.poll_recv(cx), self.interrupt.poll_recv(cx));
            match (terminate, interrupt) {
                (Poll::Ready(Some(())), _) => Poll::Ready(TERMINATE),
                (_, Poll::Ready(Some(()))) => Poll::Ready(INTERRUPT),
                _ => Poll::Pending,
            }
        }
    }
}

#[cfg(all(feature = "signal", windows))]
mod os {
    use std::{
        io,
        task::{Context, Poll},
        time::Duration,
    };

    use tokio::signal::windows::{
        CtrlBreak, CtrlC, CtrlClose, CtrlLogoff, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_logoff,
        ctrl_shutdown,
    };

    use super::OsSignal;

    /// `STATUS_CONTROL_C_EXIT`.
    const CONTROL_C_EXIT: i32 = 0xC000_013A_u32 as i32;

    /// Windows kills the process five seconds after one of these signals.
    const BEFORE_KILL: Duration = Duration::from_secs(4);

    pub(crate) struct OsSignals {
        c: CtrlC,
        r#break: CtrlBreak,
        close: CtrlClose,
        logoff: CtrlLogoff,
        shutdown: CtrlShutdown,
    }

    impl OsSignals {
        pub(super) fn register_on_this_runtime() -> io::Result<Self> {
            Ok(Self {
                c: ctrl_c()?,
                r#break: ctrl_break()?,
                close: ctrl_close()?,
                logoff: ctrl_logoff()?,
                shutdown: ctrl_shutdown()?,
            })
        }

        pub(super) fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<OsSignal> {
            // All are polled, to be woken by all.
            let polled = [
                ("Ctrl-Close", BEFORE_KILL, self.close.poll_recv(cx)),
                ("Ctrl-Logoff", BEFORE_KILL, self.logoff.poll_recv(cx)),
                ("Ctrl-Shutdown", BEFORE_KILL, self.shutdown.poll_recv(cx)),
                ("Ctrl-C", Duration::MAX, self.c.poll_recv(cx)),
                ("Ctrl-Break", Duration::MAX, self.r#break.poll_recv(cx)),
            ];
            let received = polled.into_iter().find(|(.., polled)| matches!(polled, Poll::Ready(Some(()))));
            received.map_or(Poll::Pending, |(name, longest_limit, _)| {
                Poll::Ready(OsSignal::new(name, CONTROL_C_EXIT, longest_limit))
            })
        }
    }
}

/// Without the feature `signal` there are no signals to listen to.
#[cfg(not(all(feature = "signal", any(unix, windows))))]
mod os {
    use std::{
        io,
        task::{Context, Poll},
    };

    use super::OsSignal;

    pub(crate) struct OsSignals(());

    impl OsSignals {
        pub(super) fn register_on_this_runtime() -> io::Result<Self> {
            Ok(Self(()))
        }

        pub(super) fn poll_recv(&mut self, _: &mut Context<'_>) -> Poll<OsSignal> {
            Poll::Pending
        }
    }
}

impl OsSignals {
    /// Listens to the signals from now on. A signal that comes before the first poll is not lost.
    pub(super) fn register() -> Result<Self, String> {
        const NO_RUNTIME: &str = "there is no tokio runtime";
        // Tokio has no method that tells whether a runtime has an IO driver: it panics if there is none, and the panic
        // is caught here.
        let registered = match runtime::Handle::try_current() {
            Ok(_) => crate::util::panic::catch(Self::register_on_this_runtime),
            Err(_) => Err(NO_RUNTIME.to_owned()),
        };
        let error = match registered {
            Ok(Ok(this)) => return Ok(this),
            Ok(Err(error)) => error.to_string(),
            Err(message) => message,
        };
        Err(crate::util::text::one_line(&format!("cannot listen for SIGTERM and Ctrl-C: {error}")))
    }
}
