//! `tideline ledger`: the delivery ledger of a device or of the fleet, through the REST API.

use api::ledger::{
    AcceptLoss, AcceptedLossBody, CountedBody, DeviceLedgerBody, FleetBody, LostBody,
    QuarantinedBody, RangeBody, ShowFleetLedger, ShowLedger, UnclearBody, Verify,
};
use api::{Endpoint as _, Nothing, OfDevice};
use clap::{Args, Subcommand};
use daemon::say;
use schema::{Balance, DeviceId, SeqRange};

use crate::accounted::{Exceptions, sentences};
use crate::output::{self, Confirm, form, many};
use crate::session::{Outcome, Session, verdict, wrong};

/// Shows what became of every reading.
#[derive(Debug, Args)]
#[command(
    override_usage = "tideline ledger [OPTIONS] [DEVICE]\n       \
                      tideline ledger [OPTIONS] accept-loss DEVICE",
    after_help = "Examples:\n  tideline ledger\n  tideline ledger press-7 --verify\n  \
                  tideline ledger accept-loss press-7\n\n\
                  accepted = committed + pending + quarantined + evicted + discarded, and\n\
                  committed = rows + superseded + expired: docs/ledger.md says what the words mean.\n\n\
                  Exit codes: 0 no reading is missing, 1 some are, the quarantine's budget discarded some, or the \
                  bridge does not answer, 2 wrong arguments."
)]
pub struct Options {
    /// The device; the whole fleet when left out
    device: Option<DeviceId>,
    /// Read the rows too, and compare them with what the devices sent
    #[arg(long)]
    verify: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// After the database was restored from a backup: enter what neither end has as discarded
    #[command(
        after_help = "Examples:\n  tideline ledger accept-loss press-7 --yes\n\n\
                      What was committed after the backup is gone from the database, and devices have freed it. This enters \
                      those readings as discarded by a person, and the audit says which. One that comes after all is \
                      committed nevertheless."
    )]
    AcceptLoss {
        /// The device
        device: Option<DeviceId>,
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// Asks the bridge, prints its answer, and says with the exit code whether all is well.
pub(crate) async fn run(options: &Options, session: &mut Session) -> Outcome {
    if let Some(Action::AcceptLoss { device, confirm }) = &options.action {
        if options.verify {
            return Err(wrong("ledger", "--verify compares; accept-loss takes none"));
        }
        return match (&options.device, device) {
            (Some(device), None) | (None, Some(device)) => {
                accept_loss(device, confirm, session).await
            }
            (None, None) => Err(wrong("ledger accept-loss", "name the device")),
            (Some(_), Some(_)) => Err(wrong("ledger accept-loss", "name the device once")),
        };
    }
    if options.verify && options.device.is_none() {
        return Err(wrong(
            "ledger",
            "--verify reads one device's rows: name the device",
        ));
    }
    let (balanced, exceptions) = match &options.device {
        None => {
            let request = ShowFleetLedger::at(Nothing {});
            let answer = session.api()?.ask(&request).await?;
            let is_printed = session.print_json(&answer.raw);
            let fleet = answer.body()?;
            let exceptions = exceptions_of_fleet(&fleet);
            if !is_printed {
                print_fleet(&fleet, &exceptions);
            }
            (fleet.balanced, exceptions)
        }
        Some(device) => {
            let verify = options.verify.then_some(true);
            let device = device.clone();
            let request = ShowLedger::at(OfDevice { device }).query(Verify { verify });
            let answer = session.api()?.ask(&request).await?;
            let is_printed = session.print_json(&answer.raw);
            let device = answer.body()?;
            let exceptions = exceptions_of_device(&device);
            if !is_printed {
                print_device(&device, &exceptions);
            }
            (device.balanced, exceptions)
        }
    };
    Ok(verdict(balanced && exceptions.overflowed() == 0))
}

async fn accept_loss(device: &DeviceId, confirm: &Confirm, session: &mut Session) -> Outcome {
    confirm.ask(&format!("enter what is missing of {device} as discarded"))?;
    let device = device.clone();
    let request = AcceptLoss::at(OfDevice { device });
    let answer = session.api()?.ask(&request).await?;
    session.show(&answer, print_accepted)
}

fn print_accepted(done: &AcceptedLossBody) {
    let device = output::clean(&done.device);
    match done.discarded {
        0 => say!(
            "{device}: the ledger lacks no reading; `tideline ledger {device} --verify` compares the rows with it"
        ),
        discarded => output::print(&format!(
            "{device}: {} {} discarded; the audit says which",
            many(discarded, "reading"),
            form(discarded, "is", "are")
        )),
    }
    for LostBody { epoch, ranges } in &done.epochs {
        let epoch = output::clean(epoch);
        output::print(&format!("  epoch {epoch}: {}", join(ranges)));
    }
    for UnclearBody {
        epoch,
        unaccounted,
        open,
    } in &done.unclear
    {
        let epoch = output::clean(epoch);
        output::print(&format!(
            "  epoch {epoch} stays open: {unaccounted} of {open} readings are lost, and which cannot be told \
             while the device holds the others"
        ));
    }
}

fn exceptions_of_fleet(fleet: &FleetBody) -> Exceptions {
    let exceptions = Exceptions {
        quarantined_by_reason: fleet.quarantined_by_reason.clone(),
        discarded_by: fleet.discarded_by.clone(),
    };
    exceptions.completed(&fleet.balance)
}

fn exceptions_of_device(device: &DeviceLedgerBody) -> Exceptions {
    let mut exceptions = Exceptions::default();
    for held in &device.quarantined {
        exceptions.quarantine(&held.reason, held.last - held.first + 1);
    }
    for gone in &device.discarded {
        exceptions.discard(&gone.by, gone.last - gone.first + 1);
    }
    exceptions.completed(&device.balance)
}

fn print_fleet(fleet: &FleetBody, exceptions: &Exceptions) {
    say!(
        "{}, {}",
        many(fleet.devices, "device"),
        many(fleet.epochs, "epoch")
    );
    say!("{}", fleet.balance);
    print_rows(
        &fleet.balance,
        [fleet.rows, fleet.superseded, fleet.expired],
    );
    let said = sentences(fleet.balanced, fleet.unaccounted, exceptions, "DEVICE");
    print_all("", &said);
}

fn print_device(device: &DeviceLedgerBody, exceptions: &Exceptions) {
    say!("device {}", device.device);
    say!("{}", device.balance);
    print_rows(
        &device.balance,
        [device.rows, device.superseded, device.expired],
    );
    if let Some(counted) = &device.counted {
        let CountedBody {
            verdict,
            rows,
            expected,
        } = counted;
        match verdict.as_str() {
            "sound" => say!(
                "{} {} there, as there should be",
                many(*rows, "row"),
                form(*rows, "is", "are")
            ),
            "not_comparable" => say!(
                "{} {} there; retention removed others, and not all of them were counted",
                many(*rows, "row"),
                form(*rows, "is", "are")
            ),
            _ => say!(
                "{} {} there, {expected} SHOULD be",
                many(*rows, "row"),
                form(*rows, "is", "are")
            ),
        }
    }
    let said = sentences(
        device.balanced,
        device.unaccounted,
        exceptions,
        &device.device,
    );
    print_all("", &said);
    for held in &device.quarantined {
        let QuarantinedBody {
            epoch,
            first,
            last,
            reason,
        } = held;
        say!("  in quarantine: epoch {epoch} {first}-{last}: {reason}");
    }
    for epoch in &device.epochs {
        say!("epoch {}", epoch.epoch);
        say!("  {}", epoch.balance);
        if !epoch.balanced {
            let nothing = Exceptions::default();
            let said = sentences(false, epoch.unaccounted, &nothing, &device.device);
            print_all("  ", &said);
        }
        if !epoch.gaps.is_empty() {
            say!("  not in the database: {}", join(&epoch.gaps));
        }
        for range in &epoch.ranges {
            print_range(range);
        }
    }
}

fn print_range(range: &RangeBody) {
    let (kind, first, last) = (&range.kind, range.first, range.last);
    match range.verdict.as_deref() {
        Some("expired") => say!("  {kind} {first}-{last}: removed by retention"),
        Some("not_comparable") => {
            say!("  {kind} {first}-{last}: cannot be compared, retention removed a part of it");
        }
        _ => {}
    }
    let Some(verified) = &range.verified else {
        return;
    };
    if verified.matches {
        let rows = many(verified.rows, "row");
        say!("  {kind} {first}-{last}: {rows} as sent");
        return;
    }
    if !verified.missing.is_empty() {
        let missing = join(&verified.missing);
        say!("  {kind} {first}-{last}: rows are MISSING: {missing}");
    }
    if !verified.unreadable.is_empty() {
        let altered = join(&verified.unreadable);
        say!("  {kind} {first}-{last}: rows are no readings any more: {altered}");
    }
    if verified.missing.is_empty() && verified.unreadable.is_empty() {
        say!("  {kind} {first}-{last}: rows DIFFER from what was sent");
    }
}

/// What became of committed readings. A bridge of 0.1 does not say.
fn print_rows(balance: &Balance, [rows, superseded, expired]: [Option<u64>; 3]) {
    let (Some(there), Some(superseded)) = (rows, superseded) else {
        return;
    };
    let committed = balance.committed;
    match expired {
        Some(expired) => say!(
            "{committed} committed = {there} rows + {superseded} superseded + {expired} expired"
        ),
        None => {
            say!("{committed} committed = {there} rows and expired ones + {superseded} superseded");
        }
    }
}

fn print_all(indent: &str, sentences: &[String]) {
    for sentence in sentences {
        say!("{indent}{sentence}");
    }
}

fn join(ranges: &[SeqRange]) -> String {
    let texts: Vec<String> = ranges.iter().map(SeqRange::to_string).collect();
    texts.join(", ")
}
