//! Graceful end: stop accepting, wait for what is open, force it at a deadline.

use std::time::Duration;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What every connection watches and is counted by. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    stopping: CancellationToken,
    forced: CancellationToken,
    connections: TaskTracker,
}

impl Drain {
    /// A drain that stops and is forced with this one, and also on its own.
    #[must_use]
    pub fn child(&self) -> Self {
        Self {
            stopping: self.stopping.child_token(),
            forced: self.forced.child_token(),
            connections: TaskTracker::new(),
        }
    }

    /// Runs `connection` until it ends by itself or is forced to. Dropping it early must reset it.
    pub fn spawn(&self, connection: impl Future<Output = ()> + Send + 'static) {
        let forced = self.forced.clone();
        // On the heap: a task would have room for it twice, before and after the move.
        let mut connection = Box::pin(connection);
        self.connections.spawn(async move {
            tokio::select! {
                () = &mut connection => {}
                () = forced.cancelled() => {}
            }
        });
    }

    /// Until nothing more is to be accepted.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Connections that are open.
    pub fn open(&self) -> usize {
        self.connections.len()
    }

    /// Stops accepting.
    pub fn stop(&self) {
        self.stopping.cancel();
        self.connections.close();
    }

    /// Stops accepting, waits for what is open until `deadline`, then ends it. True when nothing
    /// had to be forced.
    pub async fn end(&self, deadline: Duration) -> bool {
        self.stop();
        let in_order = tokio::time::timeout(deadline, self.connections.wait())
            .await
            .is_ok();
        self.forced.cancel();
        self.connections.wait().await;
        in_order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_open_may_finish_before_the_deadline() {
        let drain = Drain::default();
        drain.spawn(tokio::time::sleep(Duration::from_secs(5)));
        assert_eq!(drain.open(), 1);
        assert!(drain.end(Duration::from_secs(30)).await);
        assert_eq!(drain.open(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_still_open_at_the_deadline_is_ended() {
        let drain = Drain::default();
        let child = drain.child();
        child.spawn(std::future::pending());
        drain.stop();
        assert!(child.is_stopping());
        assert!(!child.end(Duration::from_secs(30)).await);
        assert_eq!(child.open(), 0);
    }
}
