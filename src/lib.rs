//! x
pub mod answer;
pub mod backend;
pub mod cache;
pub mod engine;
pub mod frontend;
pub mod http;
pub mod journal;
pub mod lease;
pub mod routes;
pub mod slots;
pub mod wheel;
pub mod config;
pub mod logformat;
