//! Heads of earlier requests. A load balancer sends the same bytes once a second: a head
//! that equals one of these is not parsed again. Which bytes are a head, and what it says, depends
//! on them alone.

use super::head::{self, BadRequest, Framing, RequestHead};
use super::{EntityTag, Method, Persistence};

/// The last heads without a body, one for each slot.
#[derive(Debug, Default)]
pub struct RepeatedHeads {
    slots: [Option<Repeated>; SLOTS],
}

#[derive(Debug)]
struct Repeated {
    /// The head with its empty line.
    bytes: Vec<u8>,
    target: String,
    method: Method,
    persistence: Persistence,
    if_none_match: Option<EntityTag>,
}

impl RepeatedHeads {
    /// As [`head::request`]. Allocates only for a head that is longer than those before it in its
    /// slot.
    pub fn request<'a>(
        &'a mut self,
        bytes: &'a [u8],
    ) -> Result<Option<RequestHead<'a>>, BadRequest> {
        let Some(slot) = slot(bytes) else { return head::request(bytes) };
        let slot = &mut self.slots[slot];
        if slot.as_ref().is_some_and(|known| known.bytes == bytes) {
            return Ok(slot.as_ref().map(Repeated::head));
        }
        let parsed = head::request(bytes)?;
        if let Some(head) = &parsed
            && head.framing == Framing::Length(0)
            && head.head_bytes == bytes.len()
        {
            slot.get_or_insert_with(Repeated::empty).replace(bytes, head);
        }
        Ok(parsed)
    }
}

impl Repeated {
    fn empty() -> Repeated {
        Repeated {
            bytes: Vec::new(),
            target: String::new(),
            method: Method::Get,
            persistence: Persistence::Close,
            if_none_match: None,
        }
    }

    fn replace(&mut self, bytes: &[u8], head: &RequestHead<'_>) {
        self.bytes.clear();
        self.bytes.extend_from_slice(bytes);
        self.target.clear();
        self.target.push_str(head.target);
        self.method = head.method;
        self.persistence = head.persistence;
        self.if_none_match = head.if_none_match;
    }

    fn head(&self) -> RequestHead<'_> {
        RequestHead {
            method: self.method,
            target: &self.target,
            persistence: self.persistence,
            framing: Framing::Length(0),
            if_none_match: self.if_none_match,
            head_bytes: self.bytes.len(),
        }
    }
}

/// The slot of a head, by its method and how its target begins. `None`: it is too short or too
/// long to be kept.
fn slot(bytes: &[u8]) -> Option<usize> {
    let (first, rest) = bytes.split_first_chunk::<8>()?;
    let second = rest.first_chunk::<8>().filter(|_| bytes.len() <= REPEATED_BYTES_MAX)?;
    let mixed = u64::from_le_bytes(*first) ^ u64::from_le_bytes(*second).rotate_left(31);
    Some((mixed.wrapping_mul(MULTIPLIER) >> (u64::BITS - SLOTS.ilog2())) as usize)
}

/// The routes of HAProxy's backends, with two methods.
const SLOTS: usize = 8;
/// A health check of HAProxy with `send-state` takes about 200 bytes.
const REPEATED_BYTES_MAX: usize = 512;
/// 2^64 divided by the golden ratio: the upper bits of a product depend on all bits (Knuth, The Art
/// of Computer Programming, volume 3, section 6.4).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

const _: () = assert!(SLOTS.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: [&str; 9] = [
        "GET /primary HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /primary HTTP/1.0\r\n\r\n",
        "GET /primary HTTP/1.0\r\n\r\nGET /",
        "OPTIONS /replica?lag=1 HTTP/1.1\r\nConnection: close\r\n\r\n",
        "POST /primary HTTP/1.1\r\nContent-Length: 3\r\n\r\n",
        "GET /primary HTTP/1.1\r\nIf-None-Match: \"0000000000000000\"\r\n\r\n",
        "GET http://host/primary HTTP/1.1\r\n\r\n",
        "GET /primary HTTP/1.1\r\nHost: x\r\n\r",
        "GET primary HTTP/1.1\r\n\r\n",
    ];

    #[test]
    fn a_repeated_head_says_what_it_said_when_it_was_parsed() {
        let mut heads = RepeatedHeads::default();
        for _ in 0..3 {
            for one in HEADS {
                for other in HEADS {
                    for text in [one, other, other] {
                        let bytes = text.as_bytes();
                        assert_eq!(heads.request(bytes), head::request(bytes), "{text}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_head_is_kept_only_without_a_body_and_by_itself() {
        let kept = |text: &str| {
            let mut heads = RepeatedHeads::default();
            let _ = heads.request(text.as_bytes());
            heads.slots.iter().flatten().count() == 1
        };
        let expected = [true, true, false, true, false, true, true, false, false];
        assert_eq!(HEADS.map(kept), expected);
        let long =
            format!("GET /primary HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(REPEATED_BYTES_MAX));
        assert!(!kept(&long));
    }

    #[test]
    fn the_usual_checks_have_slots_of_their_own() {
        let heads = ["GET /primary", "GET /replica", "OPTIONS /primary", "OPTIONS /replica"];
        let mut slots = heads.map(|head| slot(format!("{head} HTTP/1.0\r\n\r\n").as_bytes()));
        slots.sort_unstable();
        assert!(slots.windows(2).all(|two| two[0] != two[1]), "{slots:?}");
    }
}
