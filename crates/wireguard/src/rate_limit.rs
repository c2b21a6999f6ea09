//! Token buckets.

use crate::Millis;
use std::{collections::HashMap, net::IpAddr, time::Duration};

/// A bucket of tokens that is filled at a constant rate.
#[derive(Debug)]
pub struct TokenBucket {
    capacity: u64,
    per_second: u64,
    /// In thousandths of a token.
    left: u64,
    refilled: Millis,
}

impl TokenBucket {
    /// A full bucket of so many tokens, which gets so many more each second.
    pub fn new(capacity: u64, per_second: u64) -> Self {
        Self { capacity, per_second, left: capacity * 1000, refilled: Millis(0) }
    }

    /// Removes a token from the bucket. Returns `false` if there is none.
    pub fn try_take(&mut self, now: Millis) -> bool {
        let has_token = self.has_token(now);
        if has_token {
            self.left -= 1000;
        }
        has_token
    }

    /// Returns whether there is a token.
    pub fn has_token(&mut self, now: Millis) -> bool {
        let more = now.0.saturating_sub(self.refilled.0).saturating_mul(self.per_second);
        self.left = self.left.saturating_add(more).min(self.capacity * 1000);
        self.refilled = now;
        self.left >= 1000
    }
}

/// Handshakes of one source in a second while there is load (the kernel's `PACKETS_PER_SECOND`).
const SOURCE_PER_SECOND: u64 = 20;
/// Handshakes of one source at once (the kernel's `PACKETS_BURSTABLE`).
const SOURCE_BURST: u64 = 5;
/// Maximum number of sources with a limit of their own. While they are all in use, no other gets
/// through.
const MAX_SOURCES: usize = 1 << 16;
/// Time after which a source that sends nothing is forgotten: its bucket is full again by then.
const SOURCE_IDLE: Duration = Duration::from_secs(1);

/// A token bucket for each source address: an IPv4 address, or an IPv6 prefix of 64 bits, which is
/// what one site has at least.
#[derive(Debug, Default)]
pub struct SourceLimiter {
    sources: HashMap<IpAddr, SourceBucket>,
}

/// The tokens of a source, in milliseconds' worth.
#[derive(Debug)]
struct SourceBucket {
    left: u64,
    refilled: Millis,
}

impl SourceLimiter {
    /// Removes a token from the bucket of a source. Returns `false` if it has none.
    pub fn try_take(&mut self, now: Millis, from: IpAddr) -> bool {
        const TOKEN: u64 = 1000 / SOURCE_PER_SECOND;
        let source = source_prefix(from);
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            return false;
        }
        let full = SourceBucket { left: SOURCE_BURST * TOKEN, refilled: now };
        let bucket = self.sources.entry(source).or_insert(full);
        let more = now.0.saturating_sub(bucket.refilled.0);
        bucket.left = (bucket.left + more).min(SOURCE_BURST * TOKEN);
        bucket.refilled = now;
        let has_token = bucket.left >= TOKEN;
        if has_token {
            bucket.left -= TOKEN;
        }
        has_token
    }

    /// Forgets the sources that have sent nothing for a second.
    pub fn forget_idle(&mut self, now: Millis) {
        self.sources.retain(|_, bucket| !now.has_passed(SOURCE_IDLE, bucket.refilled));
    }
}

fn source_prefix(from: IpAddr) -> IpAddr {
    match from {
        IpAddr::V4(_) => from,
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_a_limit_and_gets_it_back_with_time() {
        let mut limiter = SourceLimiter::default();
        let try_take = |limiter: &mut SourceLimiter, now, ip: &str| {
            limiter.try_take(Millis(now), ip.parse().unwrap())
        };
        let passed = (0..100).filter(|_| try_take(&mut limiter, 0, "192.0.2.1")).count();
        assert_eq!(passed as u64, SOURCE_BURST);
        assert!(try_take(&mut limiter, 0, "192.0.2.2"), "another source has its own");
        let passed = (1..=1000).filter(|now| try_take(&mut limiter, *now, "192.0.2.1")).count();
        assert_eq!(passed as u64, SOURCE_PER_SECOND);
        let of_one_site =
            (0..100).filter(|at| try_take(&mut limiter, 0, &format!("2001:db8::{at}"))).count();
        assert_eq!(of_one_site as u64, SOURCE_BURST);
        limiter.forget_idle(Millis(10_000));
        assert!(limiter.sources.is_empty());
    }

    #[test]
    fn a_bucket_gives_its_capacity_at_once_and_then_its_rate() {
        let mut bucket = TokenBucket::new(10, 5);
        assert_eq!((0..100).filter(|_| bucket.try_take(Millis(0))).count(), 10);
        assert_eq!((1..=2_000).filter(|at| bucket.try_take(Millis(*at))).count(), 10);
        assert!(!bucket.has_token(Millis(2_000)) && bucket.has_token(Millis(2_200)));
    }
}
