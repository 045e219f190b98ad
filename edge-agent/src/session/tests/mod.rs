//! The session is held to its rules in three ways, all on one rig without IO: `rules` step by step, `unread` over
//! hours in which rows or whole bridges fail, and `model`, random schedules against a model of buffer, link and
//! bridge.

mod model;
mod rig;
mod rules;
mod unread;
