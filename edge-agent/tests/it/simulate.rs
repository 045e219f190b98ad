//! The `simulate` source.

use edge_agent::source::SourceState;
use schema::{Quality, Value};

use crate::eventually;
use crate::trial::Trial;

const SETTINGS: &str = "interval = \"5ms\"\nseed = 11\n\
    [[source.trial.sensor]]\nsensor = \"walk\"\nwave = \"random-walk\"\nstep = 0.1\nnoise = 0.01\n\
    [[source.trial.sensor.fault]]\nkind = \"quality\"\nquality = \"bad\"\nchance = 0.2\n\
    [[source.trial.sensor.fault]]\nkind = \"dropout\"\nchance = 0.1\nreadings = 2\n\
    [[source.trial.sensor]]\nsensor = \"count\"\nwave = \"counter\"\n\
    [[source.trial.sensor]]\nsensor = \"state\"\nwave = \"constant\"\nvalue = \"on\"\n";

#[tokio::test]
async fn each_start_simulates_the_same() {
    let readings = async || {
        let trial = Trial::start("simulate", SETTINGS).await;
        eventually("readings arrive", || trial.readings("walk").len() >= 40).await;
        assert_eq!(trial.state(), (SourceState::Running, String::new()));
        let counted = trial.readings("count");
        for (n, reading) in (0i64..).zip(&counted) {
            assert_eq!(*reading, (Value::I64(n), Quality::Good));
        }
        assert_eq!(
            trial.readings("state")[0],
            (Value::Text("on".into()), Quality::Good)
        );
        let walk = trial.readings("walk");
        assert!(walk.len() < counted.len(), "some drop out");
        assert!(walk.iter().any(|one| one.1 == Quality::Bad));
        walk[..40].to_vec()
    };
    assert_eq!(readings().await, readings().await);
}
