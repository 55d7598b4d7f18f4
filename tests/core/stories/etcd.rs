//! A model of etcd with the keys that Patroni writes, answering as the JSON gateway does.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::sim::gateway;

/// etcd, in the state that the story says.
pub struct Etcd {
    pub fault: Fault,
    /// The leader key's value; empty: the key does not exist.
    pub leader: String,
    /// When its lease ends, in virtual milliseconds; `None`: it is renewed all the time.
    pub lease_ends_ms: Option<u64>,
    pub paused: bool,
    pub standby: bool,
    pub initialize: String,
    pub role: String,
    pub state: String,
    pub timeline: u64,
    /// When requests came, since the start.
    pub requests_ms: Vec<u64>,
    /// How many of them the story has expected.
    pub expected: usize,
}

/// What is wrong with etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    Refused,
    Silent,
    NoQuorum,
    Garbage,
    /// It knows users, and no token is given.
    Forbidden,
}

impl Etcd {
    pub fn new() -> Etcd {
        Etcd {
            fault: Fault::None,
            leader: "pg1".into(),
            lease_ends_ms: None,
            paused: false,
            standby: false,
            initialize: "77".into(),
            role: "primary".into(),
            state: "running".into(),
            timeline: 2,
            requests_ms: Vec::new(),
            expected: 0,
        }
    }

    /// Changes what a sentence `the dcs …` says.
    pub fn set(&mut self, now_ms: u64, words: &str) -> Option<()> {
        let words: Vec<&str> = words.split_whitespace().collect();
        match words[..] {
            ["answers"] => self.fault = Fault::None,
            ["refuses", "connections"] => self.fault = Fault::Refused,
            ["is", "silent"] => self.fault = Fault::Silent,
            ["has", "no", "quorum"] => self.fault = Fault::NoQuorum,
            ["answers", "garbage"] => self.fault = Fault::Garbage,
            ["forbids", "it"] => self.fault = Fault::Forbidden,
            ["has", "no", "leader"] => self.leader.clear(),
            ["has", "leader", leader] => self.leader = leader.into(),
            ["has", "role", role] => self.role = role.into(),
            ["has", "state", state] => self.state = state.into(),
            ["has", "timeline", timeline] => self.timeline = timeline.parse().ok()?,
            ["has", "another", "cluster"] => self.initialize = "78".into(),
            ["has", "pause"] => self.paused = true,
            ["has", "a", "lease", "of", seconds, "s"] => {
                let seconds: u64 = seconds.parse().ok()?;
                self.lease_ends_ms = Some(now_ms + seconds * 1_000);
            }
            ["has", "a", "renewed", "lease"] => self.lease_ends_ms = None,
            _ => return None,
        }
        Some(())
    }

    /// The bytes of the answer to a whole request; `None`: it is silent.
    pub fn answer(&mut self, now_ms: u64, request: &str) -> Option<Vec<u8>> {
        self.requests_ms.push(now_ms);
        let (head, body) = request.split_once("\r\n\r\n")?;
        let path = head.split(' ').nth(1)?;
        let (status, body) = match (self.fault, path) {
            (Fault::Silent, _) => return None,
            (Fault::NoQuorum, _) => {
                (503, json!({ "code": 14, "message": "etcdserver: no leader" }))
            }
            (Fault::Garbage, _) => (200, json!({ "header": {} })),
            (Fault::Forbidden, _) => (400, json!({ "code": 3, "message": "user name is empty" })),
            (_, "/v3/kv/txn") => (200, self.transaction(body)),
            (_, "/v3/lease/timetolive") => (200, self.time_to_live(now_ms)),
            _ => (404, json!({})),
        };
        Some(gateway::framed(status, &body, false))
    }

    fn transaction(&self, body: &str) -> Value {
        let request: Value = serde_json::from_str(body).unwrap_or_default();
        let ranges = request["success"].as_array().cloned().unwrap_or_default();
        let responses: Vec<Value> =
            ranges.iter().map(|range| self.range(&range["request_range"]["key"])).collect();
        json!({ "header": gateway::header(), "succeeded": true, "responses": responses })
    }

    fn range(&self, key: &Value) -> Value {
        let name = STANDARD.decode(key.as_str().unwrap_or_default()).unwrap_or_default();
        let name = String::from_utf8_lossy(&name).into_owned();
        let short = name.trim_start_matches("/service/main/");
        let value =
            self.value(short).map(|(value, is_leased)| (value, i64::from(is_leased) * LEASE));
        gateway::range(&name, value)
    }

    /// A key's value, and whether it hangs on the lease.
    fn value(&self, key: &str) -> Option<(String, bool)> {
        let Etcd { role, state, timeline, .. } = self;
        match key {
            "leader" if self.leader.is_empty() => None,
            "leader" => Some((self.leader.clone(), true)),
            "initialize" => Some((self.initialize.clone(), false)),
            "config" => {
                let mut config = json!({ "ttl": 30, "loop_wait": 10, "retry_timeout": 10 });
                if self.paused {
                    config["pause"] = json!(true);
                }
                if self.standby {
                    config["standby_cluster"] = json!({ "host": "x" });
                }
                Some((config.to_string(), false))
            }
            "members/pg1" => {
                let member = json!({
                    "conn_url": "postgres://127.0.0.1:5432/postgres", "role": role,
                    "api_url": "http://127.0.0.1:8008/patroni", "state": state,
                    "timeline": timeline, "version": "4.1.5",
                });
                Some((member.to_string(), true))
            }
            _ => None,
        }
    }

    fn time_to_live(&self, now_ms: u64) -> Value {
        let left_ms = self.lease_ends_ms.map_or(25_500, |ends_ms| ends_ms.saturating_sub(now_ms));
        let mut answer = json!({ "header": gateway::header(), "ID": LEASE.to_string() });
        if self.lease_ends_ms.is_some_and(|ends_ms| ends_ms <= now_ms) {
            answer["TTL"] = json!("-1");
            return answer;
        }
        answer["grantedTTL"] = json!("30");
        // a field with its default value is left out
        if left_ms >= 1_000 {
            answer["TTL"] = json!((left_ms / 1_000).to_string());
        }
        answer
    }
}

const LEASE: i64 = 7_587_880_112_321_712_652;
