//! The faults of a seed and their frequency: each seed turns some faults off and others up.

use patroniglue::cache::CacheSettings;
use patroniglue::engine::Settings;

use super::random::Random;

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    // the network, both sides
    Splits,
    ShortWrites,
    Delays,
    // clients
    ClientResets,
    ClientEnds,
    SlowTakers,
    BadRequests,
    Pipelining,
    Bodies,
    Variants,
    Flood,
    Silent,
    Drips,
    AnyRoute,
    // Patroni's API
    Refused,
    ConnectSilent,
    NoDescriptor,
    Hangs,
    SlowAnswers,
    Garbage,
    Huge,
    Cut,
    PatroniResets,
    Framing,
    OddStatus,
    UnreadableConfig,
    NoSeen,
    NoTimeline,
    NoEnd,
    OddJson,
    // the cluster
    FreezeApi,
    FreezeLoop,
    FreezeProcess,
    Switchover,
    Flags,
    Retiming,
    DcsSlow,
    DcsAway,
    Unknown,
    Restarts,
    Disagree,
    Renamed,
    OtherNode,
    PatroniClock,
    // the machine
    StaleInputs,
    SpuriousTicks,
    Shuffle,
    Late,
    Suspend,
    Sleep,
    WallJumps,
    SmallJumps,
    Drain,
    Shutdown,
    Capacity,
}

const FAULTS: usize = Fault::Capacity as usize + 1;

/// The frequency of each fault, in thousandths of its occasions.
pub struct Faults {
    /// Whether this seed is mainly about a leader that is frozen while its lease expires.
    pub about_the_lease: bool,
    permille: [u64; FAULTS],
}

impl Faults {
    pub fn new(random: &mut Random) -> Faults {
        let about_the_lease = random.chance(200);
        let calm = random.chance(100);
        let wild = random.between(100, 700);
        let mut permille = [0; FAULTS].map(|_: u64| {
            if calm || !random.chance(wild) { 0 } else { random.pick(&[20, 100, 300, 600]) }
        });
        if about_the_lease {
            for fault in NOT_OF_THE_LEASE {
                permille[fault as usize] = 0;
            }
            for fault in OF_THE_LEASE {
                permille[fault as usize] = random.pick(&[0, 100, 600]);
            }
            permille[Fault::DcsSlow as usize] = random.pick(&[100, 600]);
            permille[Fault::Flags as usize] = random.pick(&[0, 0, 0, 300]);
        }
        for fault in NOT_YET {
            permille[*fault as usize] = 0;
        }
        Faults { about_the_lease, permille }
    }

    /// Leaves out what would hide a frozen API.
    pub fn focus_on_the_witness(&mut self) {
        for fault in NOT_OF_THE_LEASE.into_iter().chain(NOT_OF_THE_WITNESS) {
            if fault != Fault::Switchover {
                self.permille[fault as usize] /= 10;
            }
        }
    }

    /// Turns all faults off.
    pub fn heal(&mut self) {
        self.about_the_lease = false;
        self.permille = [0; FAULTS];
    }

    pub fn level(&self, fault: Fault) -> u64 {
        self.permille[fault as usize]
    }

    pub fn is_on(&self, fault: Fault) -> bool {
        self.level(fault) > 0
    }

    pub fn hit(&self, random: &mut Random, fault: Fault) -> bool {
        random.chance(self.level(fault))
    }
}

/// The engine's settings in a seed.
pub fn settings(random: &mut Random, faults: &Faults) -> Settings {
    let ttl_ms = random.pick(&[0, 20, 50, 100, 500, 1_000, 1_000, 2_000, 5_000, 30_000, 60_000]);
    let grace_ms = random.pick(&[0, 0, 0, 500, 2_000, 10_000, 20_000, 30_000]);
    let timeout_ms = random.pick(&[100, 500, 1_000, 3_000, 3_000, 3_000, 10_000]);
    let (ttl_ms, grace_ms, timeout_ms) = if faults.about_the_lease {
        // fresh answers must end with the lease as well as stale ones
        let long = random.chance(300);
        let ttl_ms = if long { ttl_ms.max(30_000) } else { ttl_ms.min(2_000) };
        (ttl_ms, grace_ms.max(20_000), timeout_ms.min(1_000))
    } else {
        (ttl_ms, grace_ms, timeout_ms)
    };
    let capacity = faults.is_on(Fault::Capacity);
    let variants_max =
        if capacity { random.between(0, 3) } else { random.pick(&[64, 64, 8]) } as usize;
    Settings {
        cache: CacheSettings { ttl_ms, grace_ms, variants_max },
        interval_ms: random.pick(&[50, 250, 250, 1_000, 5_000]),
        timeout_ms,
        fetches_max: random.pick(&[1, 2, 3, 3, 5]),
        clients_max: if capacity { random.between(1, 8) } else { 1_000 } as usize,
        fence: false,
        dcs: None,
        host: "patroni:8008".into(),
        agent_target: "/replica".into(),
        records: random.chance(500),
    }
}

/// Faults that the engine does not stand yet.
const NOT_YET: &[Fault] = &[];
const OF_THE_LEASE: [Fault; 6] = [
    Fault::DcsSlow,
    Fault::FreezeApi,
    Fault::FreezeLoop,
    Fault::FreezeProcess,
    Fault::AnyRoute,
    Fault::Retiming,
];
const NOT_OF_THE_WITNESS: [Fault; 6] = [
    Fault::Renamed,
    Fault::OtherNode,
    Fault::Flags,
    Fault::Unknown,
    Fault::Disagree,
    Fault::WallJumps,
];
const NOT_OF_THE_LEASE: [Fault; 14] = [
    Fault::Refused,
    Fault::NoDescriptor,
    Fault::Garbage,
    Fault::Huge,
    Fault::Cut,
    Fault::PatroniResets,
    Fault::OddStatus,
    Fault::UnreadableConfig,
    Fault::NoSeen,
    Fault::Switchover,
    Fault::Restarts,
    Fault::Suspend,
    Fault::Shutdown,
    Fault::Capacity,
];
