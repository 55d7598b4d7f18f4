//! What Patroni keeps in etcd: the truth that the model of etcd answers with.

use super::patroni::Intervals;

/// The lease of this node, and the keys that hang on it.
pub struct Keys {
    /// The leader key, if it is this node's.
    leader: Option<Leader>,
    member: Option<Member>,
    /// What a member key that is late will say one cycle later.
    unpublished: Option<Member>,
    lease: Lease,
    /// The lease before, on which a key may still hang.
    previous: Lease,
    /// When another node takes the leader key, if it is free.
    others_ms: u64,
    /// When the leader key of this node was deleted last.
    pub deleted_ms: Option<u64>,
    /// Whether etcd revoked this node's lease before its end.
    pub is_revoked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leader {
    pub name: &'static str,
    pub lease: i64,
}

/// The value of `members/<name>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub role: &'static str,
    pub state: &'static str,
    pub timeline: Option<u64>,
    pub lease: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: i64,
    pub until_ms: u64,
    pub granted_seconds: u64,
}

/// The keys and leases at one moment.
#[derive(Clone, Debug)]
pub struct Truth {
    pub at_ms: u64,
    pub leader: Option<Leader>,
    pub member: Option<Member>,
    pub paused: bool,
    pub standby_cluster: bool,
    pub intervals: Intervals,
    /// Whether the keys are another cluster's, of the same name.
    pub is_foreign: bool,
    leases: [Lease; 2],
}

impl Keys {
    /// The keys of a node whose lease lasts until `until_ms`.
    pub fn new(leader: Option<&'static str>, until_ms: u64, granted_seconds: u64) -> Keys {
        let lease = Lease { id: LEASE_MIN, until_ms, granted_seconds };
        Keys {
            leader: leader.map(|name| Leader { name, lease: lease.id }),
            member: None,
            unpublished: None,
            lease,
            previous: Lease { id: LEASE_MIN - 1, until_ms: 0, granted_seconds },
            others_ms: 0,
            deleted_ms: None,
            is_revoked: false,
        }
    }

    /// Renews the lease. Patroni takes another one if its `ttl` has changed.
    pub fn renew(&mut self, ms: u64, seconds: u64) {
        if self.lease.until_ms <= ms || self.lease.granted_seconds != seconds {
            let next = Lease { id: self.lease.id + 1, ..self.lease };
            self.previous = std::mem::replace(&mut self.lease, next);
        }
        self.lease.until_ms = ms + seconds * 1_000;
        self.lease.granted_seconds = seconds;
    }

    /// The node holds the leader key under its lease.
    pub fn hold(&mut self, name: &'static str) {
        self.leader = Some(Leader { name, lease: self.lease.id });
        (self.deleted_ms, self.is_revoked) = (None, false);
    }

    /// The leader key is gone; another node takes it at `others_ms`.
    pub fn lose(&mut self, ms: u64, others_ms: u64) {
        if self.leader.take().is_some() {
            (self.deleted_ms, self.others_ms) = (Some(ms), others_ms);
        }
    }

    /// Writes the member key; if it is `late`, what should have been written a cycle before.
    pub fn publish(&mut self, member: Member, is_late: bool) {
        let member = Member { lease: self.lease.id, ..member };
        let previous = self.unpublished.replace(member);
        let late = previous.map(|previous| Member { lease: self.lease.id, ..previous });
        self.member = late.filter(|_| is_late).or(Some(member));
    }

    /// The machine slept: the leases went on.
    pub fn sleep(&mut self, ms: u64) {
        for lease in [&mut self.lease, &mut self.previous] {
            lease.until_ms = lease.until_ms.saturating_sub(ms);
        }
    }

    /// etcd ends the lease early, with the keys that hang on it.
    pub fn revoke(&mut self, ms: u64, others_ms: u64) {
        self.lease.until_ms = self.lease.until_ms.min(ms);
        self.is_revoked |= self.leader.is_some();
        self.lose(ms, others_ms);
    }

    /// A new leader of etcd prolongs each lease. Returns the end of this node's.
    pub fn prolong(&mut self, ms: u64) -> Option<u64> {
        if self.lease.until_ms <= ms {
            return None;
        }
        self.lease.until_ms = ms + self.lease.granted_seconds * 1_000;
        Some(self.lease.until_ms)
    }

    /// The keys now. `is_free`: no other node takes the leader key.
    pub fn truth(&self, ms: u64, is_free: bool, config: (bool, bool, Intervals)) -> Truth {
        let leases = [self.lease, self.previous];
        let lives = |id: i64| leases.iter().any(|lease| lease.id == id && lease.until_ms > ms);
        let other = Leader { name: OTHER_LEADER, lease: OTHER_LEASE };
        let is_taken = self.leader.is_none() && !is_free && ms >= self.others_ms;
        let (paused, standby_cluster, intervals) = config;
        Truth {
            at_ms: ms,
            leader: match self.leader.filter(|leader| lives(leader.lease)) {
                None => is_taken.then_some(other),
                ours => ours,
            },
            member: self.member.filter(|member| lives(member.lease)),
            paused,
            standby_cluster,
            intervals,
            is_foreign: false,
            leases,
        }
    }
}

impl Truth {
    /// The lease with this id, if it lives.
    pub fn lease(&self, id: i64) -> Option<Lease> {
        let other = Lease { id: OTHER_LEASE, until_ms: self.at_ms + 20_500, granted_seconds: 30 };
        let leases = self.leases.into_iter().chain([other]);
        leases.filter(|lease| lease.until_ms > self.at_ms).find(|lease| lease.id == id)
    }

    /// What a healthy cluster of the same name has in its keys: all but `initialize` is the same.
    pub fn of_another_cluster(self, name: &'static str, role: &'static str) -> Truth {
        let member = Member { role, state: "running", timeline: None, lease: OTHER_LEASE };
        let leader = Some(Leader { name, lease: OTHER_LEASE });
        Truth { leader, member: Some(member), is_foreign: true, ..self }
    }
}

const OTHER_LEADER: &str = "pg9";
const OTHER_LEASE: i64 = 77;
const LEASE_MIN: i64 = 7_587_880_112_321_712_652;
