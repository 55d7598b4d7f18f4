//! What a node says of itself, out of Patroni's JSON.

use serde::Deserialize;

/// The fields of a node's status that decide anything. Patroni leaves out what does not apply.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NodeStatus {
    /// `running`, `starting`, `stopped`, … (Patroni 4.1, `postgresql/misc.py`).
    #[serde(default)]
    pub state: String,
    /// `primary` (`master` before Patroni 4.0), `replica`, `standby_leader`, …
    #[serde(default)]
    pub role: String,
    /// PostgreSQL's timeline, as a primary and some replicas know it.
    pub timeline: Option<u64>,
}

impl NodeStatus {
    /// `None`: the body is no node's status.
    pub fn from_json(body: &[u8]) -> Option<NodeStatus> {
        serde_json::from_slice::<NodeStatus>(body).ok().filter(|status| !status.state.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_what_it_is() {
        let body =
            br#"{"state": "running", "role": "primary", "xlog": {"location": 1}, "timeline": 2}"#;
        let status =
            NodeStatus { state: "running".into(), role: "primary".into(), timeline: Some(2) };
        assert_eq!(NodeStatus::from_json(body), Some(status));
        for body in ["", "[]", "{}", "{\"state\": 1}", "{\"state\": \"running\""] {
            assert_eq!(NodeStatus::from_json(body.as_bytes()), None, "{body}");
        }
    }
}
