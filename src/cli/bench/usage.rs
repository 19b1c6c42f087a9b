//! What processes use, from Linux's `/proc`. Elsewhere, nothing is known about it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio_util::task::AbortOnDropHandle;

/// Ticks a second in `/proc/PID/stat`: the same on every machine that this builds for,
/// whatever the kernel's own clock.
const TICKS: u64 = 100;

/// How often resident memory is looked at: a batch takes longer.
const LOOK: Duration = Duration::from_millis(50);

/// Something for each process that takes part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Each<T> {
    /// This process.
    pub analytics_server: T,
    pub nats_server: T,
    pub clickhouse: T,
}

impl<T> Each<T> {
    pub fn map<U>(self, mut change: impl FnMut(T) -> U) -> Each<U> {
        Each {
            analytics_server: change(self.analytics_server),
            nats_server: change(self.nats_server),
            clickhouse: change(self.clickhouse),
        }
    }

    fn zip<U>(self, other: Each<U>) -> Each<(T, U)> {
        Each {
            analytics_server: (self.analytics_server, other.analytics_server),
            nats_server: (self.nats_server, other.nats_server),
            clickhouse: (self.clickhouse, other.clickhouse),
        }
    }
}

/// The processes' ids; `None` for one on another machine.
pub type Pids = Each<Option<u32>>;

/// What was used while something was measured.
#[derive(Debug, Clone, Copy)]
pub struct Used {
    pub elapsed: Duration,
    /// User and system time.
    pub cpu: Each<Option<Duration>>,
    /// The most resident memory at any one time, in bytes.
    pub peak_memory: Each<Option<u64>>,
}

/// Measures from the moment it is started.
pub struct Meter {
    pids: Pids,
    started: Instant,
    cpu_before: Each<Option<Duration>>,
    peaks: Arc<Peaks>,
    sampler: AbortOnDropHandle<()>,
    /// The kernel's own record of this process's peak begins with the measurement.
    peak_was_reset: bool,
}

/// The most resident memory that was seen, in bytes.
#[derive(Default)]
struct Peaks(Mutex<Option<Each<Option<u64>>>>);

impl Meter {
    pub fn start(pids: Pids) -> Self {
        let peaks = Arc::new(Peaks::default());
        peaks.look(pids);
        let sampler = tokio::spawn({
            let peaks = Arc::clone(&peaks);
            async move {
                loop {
                    tokio::time::sleep(LOOK).await;
                    peaks.look(pids);
                }
            }
        });
        Self {
            pids,
            peaks,
            sampler: AbortOnDropHandle::new(sampler),
            // Other processes' records are not this command's to change.
            peak_was_reset: std::fs::write("/proc/self/clear_refs", "5").is_ok(),
            cpu_before: pids.map(|pid| pid.and_then(cpu)),
            started: Instant::now(),
        }
    }

    pub fn stop(self) -> Used {
        let elapsed = self.started.elapsed();
        let cpu = self.pids.map(|pid| pid.and_then(cpu));
        drop(self.sampler);
        let mut peak_memory = self.peaks.look(self.pids);
        if self.peak_was_reset
            && let Some(peak) = self
                .pids
                .analytics_server
                .and_then(|pid| memory(pid, "VmHWM"))
        {
            peak_memory.analytics_server = Some(peak);
        }
        Used {
            elapsed,
            cpu: self
                .cpu_before
                .zip(cpu)
                .map(|(before, after)| after?.checked_sub(before?)),
            peak_memory,
        }
    }
}

impl Peaks {
    /// Takes note of what is resident now; returns the peaks so far.
    fn look(&self, pids: Pids) -> Each<Option<u64>> {
        let resident = pids.map(|pid| pid.and_then(|pid| memory(pid, "VmRSS")));
        let mut peaks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let peaks = peaks.get_or_insert(resident);
        *peaks = peaks.zip(resident).map(|(peak, now)| peak.max(now));
        *peaks
    }
}

/// Whether a process's use can be read here.
pub fn is_readable(pid: u32) -> bool {
    cpu(pid).is_some()
}

fn cpu(pid: u32) -> Option<Duration> {
    cpu_in(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn memory(pid: u32, field: &str) -> Option<u64> {
    memory_in(
        &std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?,
        field,
    )
}

/// User and system time in a `/proc/PID/stat`: fields 14 and 15, as proc(5) counts.
fn cpu_in(stat: &str) -> Option<Duration> {
    // The second field is the program's name in parentheses, with whatever is in it.
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    Some(Duration::from_millis(ticks * (1000 / TICKS)))
}

/// A field of a `/proc/PID/status` that is in kB, in bytes.
fn memory_in(status: &str, field: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    let kib = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "4711 (a) b (c) S 1 4711 4711 0 -1 4194304 100 200 3 4 1234 66 7 8 20 0 9 0 555";
        assert_eq!(cpu_in(stat), Some(Duration::from_secs(13)));
        assert_eq!(cpu_in("4711 (short) S 1"), None);
        assert_eq!(cpu_in(""), None);
    }

    #[test]
    fn memory_is_in_bytes() {
        let status = "Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t    1024 kB\nThreads:\t9\n";
        assert_eq!(memory_in(status, "VmHWM"), Some(2 << 20));
        assert_eq!(memory_in(status, "VmRSS"), Some(1 << 20));
        assert_eq!(memory_in(status, "VmSwap"), None);
        assert_eq!(memory_in(status, "Threads"), None);
    }

    #[tokio::test]
    #[cfg(target_os = "linux")]
    async fn memory_that_was_given_back_stays_in_the_peak() {
        let this = Some(std::process::id());
        let pids = Each {
            analytics_server: this,
            nats_server: this,
            clickhouse: None,
        };
        let meter = Meter::start(pids);
        let size = 64 << 20;
        let memory = std::hint::black_box(vec![1u8; size]);
        let seen = meter.peaks.look(pids).nats_server;
        drop(memory);
        let used = meter.stop();
        assert!(seen >= Some(size as u64));
        assert!(used.peak_memory.nats_server >= seen);
        assert!(used.peak_memory.analytics_server >= Some(size as u64));
        assert_eq!(used.peak_memory.clickhouse, None);
        assert!(used.cpu.analytics_server.is_some());
        assert_eq!(used.cpu.clickhouse, None);
    }
}
