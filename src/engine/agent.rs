//! HAProxy's agent checks: each connection gets one line with the whole state, so that a missed
//! line does no harm. The lookup is that of a health check; the line only takes the server out.

use super::Engine;
use crate::frontend::Frontend;
use crate::slots::ConnId;
use crate::time::Now;

impl Engine {
    /// A new connection asks for the route's answer without sending anything.
    pub(super) fn ask_agent(&mut self, now: Now, id: ConnId) {
        let Some(client) = self.client(id) else { return };
        let (frontend, request) = Frontend::waiting_at_once(now.time);
        client.frontend = frontend;
        self.parser.target.clear();
        self.parser.target.push_str(&self.settings.agent_target);
        self.ask(now, id, request);
        self.reschedule(id);
    }

    /// Says what a response with this status means, and waits for the peer's end.
    pub(super) fn answer_agent(&mut self, now: Now, id: ConnId, status: u16) {
        let line = self.agent_line(status).into_bytes();
        if let Some(client) = self.client(id) {
            client.frontend.refuse(now.time, line.into());
        }
        self.record(now, id, status);
    }

    fn agent_line(&self, status: u16) -> String {
        if self.is_shutting_down() {
            "down ready #patroniglue is ending\n".to_owned() // the next start says up
        } else if self.draining {
            "up drain 100%\n".to_owned()
        } else if status == 200 {
            "up ready 100%\n".to_owned()
        } else {
            format!("down ready #{status} on {}\n", self.settings.agent_target)
        }
    }
}
