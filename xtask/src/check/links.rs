//! Links between the repository's documents: a file that is named exists, a heading too. The same
//! goes for documents that code and settings name as `docs/NAME.md`. Links to the web are left
//! alone, since a check must not depend on somebody else's server.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use daemon::{Class, Failure};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use super::Findings;
use crate::workspace;

/// This file, whose tests name documents that do not exist.
const EXEMPT: &str = "xtask/src/check/links.rs";

/// What of a document matters here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Document {
    links: Vec<String>,
    /// Headings as anchors, in the spelling that code hosts give them.
    anchors: Vec<String>,
}

/// Follows every link of every Markdown file.
pub(crate) fn check() -> Result<Findings, Failure> {
    let files = workspace::files()?;
    let mut documents = BTreeMap::new();
    for file in files.iter().filter(|file| is_markdown(file)) {
        let text = std::fs::read_to_string(workspace::root().join(file)).map_err(|error| {
            Failure::new(Class::Data, format!("read {}", file.display())).because(error)
        })?;
        documents.insert(file.clone(), read(&text));
    }
    let exists = |path: &Path| {
        path.as_os_str().is_empty() || files.iter().any(|file| file.starts_with(path))
    };
    let mut findings = follow(&documents, exists);
    for file in files
        .iter()
        .filter(|file| !is_markdown(file) && *file != Path::new(EXEMPT))
    {
        // What is no text names no document.
        let text = std::fs::read_to_string(workspace::root().join(file)).unwrap_or_default();
        findings.extend(
            mentions(&text)
                .filter(|document| !exists(Path::new(document)))
                .map(|document| {
                    format!("{}: names {document}, which does not exist", file.display())
                }),
        );
    }
    Ok(findings)
}

/// The documents that a text names as `docs/NAME.md`.
fn mentions(text: &str) -> impl Iterator<Item = &str> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || "-_./".contains(letter);
    text.match_indices("docs/").filter_map(move |(at, _)| {
        let rest = &text[at..];
        let path = &rest[..rest.find(|letter| !is_part(letter)).unwrap_or(rest.len())];
        let end = path.rfind(".md")?;
        Some(&path[..end + ".md".len()])
    })
}

fn is_markdown(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension == "md")
}

fn follow(documents: &BTreeMap<PathBuf, Document>, exists: impl Fn(&Path) -> bool) -> Findings {
    let mut findings = Findings::new();
    for (file, document) in documents {
        for link in document.links.iter().filter(|link| is_local(link)) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = resolve(file, path);
            let from = file.display();
            if !target.as_ref().is_some_and(|target| exists(target)) {
                findings.push(format!(
                    "{from}: links to {link}, which is not in the repository"
                ));
                continue;
            }
            let headings = target.and_then(|target| documents.get(&target));
            if let Some(headings) = headings
                && !anchor.is_empty()
                && !headings.anchors.iter().any(|known| known == anchor)
            {
                findings.push(format!(
                    "{from}: links to {link}, which has no such heading"
                ));
            }
        }
    }
    findings
}

fn is_local(link: &str) -> bool {
    !link.contains("://") && !link.starts_with("mailto:")
}

/// The file that a link of `file` names, from the root; `None` when it leads out of it.
fn resolve(file: &Path, path: &str) -> Option<PathBuf> {
    if path.is_empty() {
        return Some(file.to_owned());
    }
    let start = if path.starts_with('/') {
        Path::new("")
    } else {
        file.parent().unwrap_or(Path::new(""))
    };
    let mut resolved = PathBuf::new();
    for part in start.join(path.trim_start_matches('/')).components() {
        match part {
            Component::Normal(name) => resolved.push(name),
            Component::ParentDir => {
                if !resolved.pop() {
                    return None;
                }
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    Some(resolved)
}

fn read(text: &str) -> Document {
    let mut document = Document::default();
    let mut heading: Option<String> = None;
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH;
    for event in Parser::new_ext(text, options) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                document.links.push(dest_url.into_string());
            }
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                if let Some(title) = heading.take() {
                    let anchor = unused(&document.anchors, &slug(&title));
                    document.anchors.push(anchor);
                }
            }
            Event::Text(part) | Event::Code(part) => {
                if let Some(title) = &mut heading {
                    title.push_str(&part);
                }
            }
            _ => {}
        }
    }
    document
}

/// A heading as an anchor: small letters, digits, hyphens and underscores.
fn slug(title: &str) -> String {
    title
        .to_lowercase()
        .chars()
        .filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            _ => letter.is_alphanumeric().then_some(letter),
        })
        .collect()
}

/// A repeated heading gets a number.
fn unused(taken: &[String], slug: &str) -> String {
    let is_free = |anchor: &String| !taken.contains(anchor);
    let numbered = (1..).map(|number| format!("{slug}-{number}"));
    std::iter::once(slug.to_owned())
        .chain(numbered)
        .find(is_free)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(files: &[(&str, &str)]) -> Findings {
        let documents: BTreeMap<PathBuf, Document> = files
            .iter()
            .map(|(name, text)| (PathBuf::from(name), read(text)))
            .collect();
        follow(&documents, |path| documents.contains_key(path))
    }

    #[test]
    fn files_and_headings_are_found() {
        let good = [
            (
                "README.md",
                "[a](docs/a.md) [b](docs/a.md#exit-codes-0-and-1) [c](#top) [w](https://x.y/z)\n# Top\n",
            ),
            (
                "docs/a.md",
                "# `Exit` codes: 0 and 1\n[up](../README.md#top) [root](/README.md)\n",
            ),
        ];
        assert_eq!(findings(&good), Findings::new());
    }

    #[test]
    fn what_is_missing_is_named() {
        let bad = [("docs/a.md", "# A\n[x](b.md) [y](#b) [z](../../out.md)\n")];
        assert_eq!(
            findings(&bad),
            [
                "docs/a.md: links to b.md, which is not in the repository",
                "docs/a.md: links to #b, which has no such heading",
                "docs/a.md: links to ../../out.md, which is not in the repository",
            ]
        );
    }

    #[test]
    fn documents_are_found_in_code() {
        let text = "//! See docs/a-b/c.md. Not docs/ alone, but `docs/d.md`, and docs/e.md#top.";
        let found: Vec<&str> = mentions(text).collect();
        assert_eq!(found, ["docs/a-b/c.md", "docs/d.md", "docs/e.md"]);
    }

    #[test]
    fn code_is_no_link_and_headings_are_numbered() {
        let document = read("# A\n```\n[x](y.md)\n```\n`[x](y.md)`\n# A\n# A\n");
        assert!(document.links.is_empty());
        assert_eq!(document.anchors, ["a", "a-1", "a-2"]);
    }
}
