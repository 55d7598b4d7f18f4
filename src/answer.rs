//! An upstream's answer, or the 503 for its absence, and the responses rendered from it.

use std::rc::Rc;

use crate::http::head::PassedOn;
use crate::http::write::{ALLOW_CHECKS, Cached, NO_STORE, ResponseFields, response};
use crate::http::{Method, Persistence};
use crate::time::{Now, Time};

/// An upstream's answer, or the 503 for its absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200 to 599.
    pub status: u16,
    /// The fields that clients get as well.
    pub passed_on: PassedOn,
    /// Byte for byte.
    pub body: Box<[u8]>,
    /// Just before Patroni was asked: the answer's age counts from here.
    pub asked_at: Time,
    /// Patroni's clock when it answered, in Unix seconds.
    pub date_unix_seconds: Option<u64>,
    /// The address that answered.
    pub address: AddressId,
}

/// One of an upstream's addresses; equal for equal addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressId(pub u32);

/// An answer in the forms that were asked for, each rendered at most once a second.
#[derive(Debug)]
pub struct Rendered {
    answer: Answer,
    /// The Unix second in which all `forms` were rendered, and the age they carry.
    second: (u64, u64),
    /// At most one for each combination of a [`Form`]'s values.
    forms: Vec<(Form, Rc<[u8]>)>,
}

/// How the responses to different clients may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// GET, HEAD or OPTIONS.
    pub method: Method,
    /// Whether the client's connection stays open.
    pub persistence: Persistence,
    /// What the cache did for this client.
    pub cache_status: CacheStatus,
}

/// What the cache did for a request, in the words of RFC 9211, section 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    /// Answered from memory.
    Hit,
    /// No answer in memory was fresh: Patroni was asked.
    Miss,
    /// As `Miss`, by a fetch that another client caused.
    Collapsed,
    /// Answered from memory, past its validity: Patroni is silent.
    Stale,
    /// The last fetch failed, and the next has not ended: its 503, from memory.
    FailedHit,
    /// Patroni was asked and did not answer.
    Failed,
}

impl Answer {
    /// Whether the body is JSON by its media type.
    pub fn is_json(&self) -> bool {
        let content_type = self.passed_on.content_type.as_deref().unwrap_or_default();
        let media_type = content_type.split(|byte| *byte == b';').next().unwrap_or_default();
        media_type.trim_ascii().eq_ignore_ascii_case(b"application/json")
    }
}

impl Rendered {
    /// Keeps `answer`; no form is rendered yet.
    pub fn new(answer: Answer) -> Self {
        Rendered { answer, second: (0, 0), forms: Vec::new() }
    }

    /// The answer.
    pub fn answer(&self) -> &Answer {
        &self.answer
    }

    /// The whole response for a client, shared by all that get the same form in this second.
    pub fn form(&mut self, now: Now, form: Form) -> Rc<[u8]> {
        let age_seconds = now.time.ms_since(self.answer.asked_at) / 1000;
        let second = (now.unix_ms / 1000, age_seconds);
        if self.second != second {
            self.second = second;
            self.forms.clear();
        }
        if let Some((_, bytes)) = self.forms.iter().find(|(known, _)| *known == form) {
            return Rc::clone(bytes);
        }
        let bytes = self.render(form);
        self.forms.push((form, Rc::clone(&bytes)));
        bytes
    }

    fn render(&self, form: Form) -> Rc<[u8]> {
        let options = form.method == Method::Options;
        let body_bytes = if options { 0 } else { self.answer.body.len() };
        let fields = ResponseFields {
            status: self.answer.status,
            date_unix_seconds: self.second.0,
            passed_on: if options { &PassedOn::NONE } else { &self.answer.passed_on },
            content_length: body_bytes,
            cached: Some(Cached { age_seconds: self.second.1, status: form.cache_status.name() }),
            allow: options.then_some(ALLOW_CHECKS),
            cache_control: NO_STORE,
            more: "",
            persistence: form.persistence,
        };
        let body = if form.method == Method::Get { &self.answer.body[..] } else { &[] };
        response(&fields, body)
    }
}

impl CacheStatus {
    /// Its name in metrics and status.
    pub fn label(self) -> &'static str {
        match self {
            CacheStatus::Hit => "hit",
            CacheStatus::Miss => "miss",
            CacheStatus::Collapsed => "collapsed",
            CacheStatus::Stale => "stale",
            CacheStatus::FailedHit => "failed_hit",
            CacheStatus::Failed => "failed",
        }
    }

    /// The parameters of `Cache-Status`.
    fn name(self) -> &'static str {
        match self {
            CacheStatus::Hit => "hit",
            CacheStatus::Miss => "fwd=miss; stored",
            CacheStatus::Collapsed => "fwd=miss; collapsed",
            CacheStatus::Stale => "hit; detail=silent",
            CacheStatus::FailedHit => "hit; detail=failed",
            CacheStatus::Failed => "fwd=miss; detail=failed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now { time: Time::from_ms(3_999), unix_ms: 1_000 };

    fn rendered() -> Rendered {
        Rendered::new(Answer {
            status: 200,
            passed_on: PassedOn::json(),
            body: b"hello"[..].into(),
            asked_at: Time::from_ms(2_000),
            date_unix_seconds: None,
            address: AddressId::default(),
        })
    }

    fn get() -> Form {
        Form {
            method: Method::Get,
            persistence: Persistence::Persistent,
            cache_status: CacheStatus::Hit,
        }
    }

    #[test]
    fn a_form_is_rendered_once_a_second() {
        let mut rendered = rendered();
        let first = rendered.form(NOW, get());
        assert!(Rc::ptr_eq(&first, &rendered.form(NOW, get())));
        let close = Form { persistence: Persistence::Close, ..get() };
        assert!(!Rc::ptr_eq(&first, &rendered.form(NOW, close)));
        assert!(Rc::ptr_eq(&first, &rendered.form(NOW, get())));
        // the age turns a second before the date does
        let later = Now { time: Time::from_ms(4_000), ..NOW };
        let aged = String::from_utf8_lossy(&rendered.form(later, get())).into_owned();
        assert!(aged.contains("Age: 2\r\n"), "{aged}");
        assert!(String::from_utf8_lossy(&first).contains("Age: 1\r\n"));
    }

    #[test]
    fn head_and_options_are_derived_from_the_get() {
        let mut rendered = rendered();
        let mut text = |method| {
            let bytes = rendered.form(NOW, Form { method, ..get() });
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let get = text(Method::Get);
        assert!(get.ends_with("\r\n\r\nhello"), "{get}");
        assert_eq!(text(Method::Head), get.replace("hello", ""));
        let options = text(Method::Options);
        assert!(options.contains("Allow: GET, HEAD, OPTIONS\r\n"), "{options}");
        assert!(options.contains("Content-Length: 0\r\n") && options.ends_with("\r\n\r\n"));
    }
}
