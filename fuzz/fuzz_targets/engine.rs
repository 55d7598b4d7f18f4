//! The engine, driven by the fuzzer's decisions, by the shell's rules and against them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use patroniglue::admin::ShellView;
use patroniglue::answer::AddressId;
use patroniglue::cache::CacheSettings;
use patroniglue::engine::{ADMIN_CLIENTS_MAX, Action, Engine, Port, Settings};
use patroniglue::failure::Failure;
use patroniglue::fetch::Progress;
use patroniglue::routes::ROUTES;
use patroniglue::slots::ConnId;
use patroniglue::time::{Now, Time};

fuzz_target!(|steps: Vec<(u8, u8, &[u8])>| {
    let limits = CacheSettings { ttl_ms: 1_000, grace_ms: 2_000, variants_max: 2 };
    let mut engine = Engine::new(Settings {
        cache: limits,
        interval_ms: 250,
        timeout_ms: 3_000,
        fetches_max: 2,
        clients_max: 4,
        fence: false,
        dcs: None,
        host: "patroni:8008".into(),
        agent_target: "/replica".into(),
        records: true,
    });
    let mut ids: Vec<ConnId> = Vec::new();
    let mut ms = 0;
    for (what, which, bytes) in steps {
        let now = Now { time: Time::from_ms(ms), unix_ms: 1_700_000_000_000 + ms };
        let id = ids.get(usize::from(which) % ids.len().max(1)).copied();
        let id = id.unwrap_or(ConnId { slot: u32::from(which), generation: u32::from(what) });
        match what % 14 {
            0 => ids.extend(engine.accept(now, Port::Checks)),
            12 => ids.extend(engine.accept(now, Port::Admin)),
            13 => ids.extend(engine.accept(now, Port::Agent)),
            1 => {
                engine.connected_to(id, AddressId(u32::from(which)));
                engine.progress(id, Progress::Open);
            }
            2 => engine.connect_failed(now, id, Failure::Refused),
            3 | 4 => engine.receive(now, id, bytes),
            5 | 6 => {
                let count = engine.output(id).len().min(usize::from(which) * 8);
                engine.sent(now, id, count);
            }
            7 => engine.eof(now, id),
            8 => engine.broken(now, id, Failure::Reset),
            9 => ms += u64::from(which) * 10,
            10 => engine.start(now),
            _ => engine.tick(now),
        }
        while let Some(action) = engine.poll_action() {
            match action {
                Action::Connect(id, _) => ids.push(id),
                Action::Close(closed) => ids.retain(|id| *id != closed),
                Action::Wake(_) | Action::ShutdownWrite(_) | Action::NextAddress(_) => {}
                Action::Report(id, report) => {
                    engine.report(now, id, report, &ShellView::default());
                }
            }
        }
        while engine.poll_record().is_some() {}
        engine.next_deadline();
        let counts = engine.counts();
        assert!(counts.clients <= 4 + 2 * ADMIN_CLIENTS_MAX && counts.fetches <= 2);
        assert!(counts.waiters <= counts.clients);
        assert!(counts.entries <= ROUTES.len() + 2);
    }
});
