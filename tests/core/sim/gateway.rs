//! The answers of etcd's JSON gateway, as recorded in `tests/fixtures/etcd`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// The header of every answer.
pub fn header() -> Value {
    json!({ "cluster_id": "1", "member_id": "2", "revision": "5", "raft_term": "3" })
}

/// What a transaction says of one key: its value, and the lease that it hangs on, or 0.
pub fn range(key: &str, value: Option<(String, i64)>) -> Value {
    let header = json!({ "revision": "5" });
    let Some((value, lease)) = value else {
        return json!({ "response_range": { "header": header } });
    };
    let mut pair = json!({
        "key": STANDARD.encode(key), "create_revision": "3", "mod_revision": "4", "version": "1",
        "value": STANDARD.encode(value),
    });
    if lease > 0 {
        pair["lease"] = json!(lease.to_string());
    }
    json!({ "response_range": { "header": header, "kvs": [pair], "count": "1" } })
}

/// A whole response. The gateway sends a length only with short answers.
pub fn framed(status: u16, body: &Value, is_long: bool) -> Vec<u8> {
    let body = body.to_string();
    let length =
        if is_long { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let head = format!("HTTP/1.0 {status} X\r\nContent-Type: application/json\r\n{length}\r\n");
    (head + &body).into_bytes()
}
