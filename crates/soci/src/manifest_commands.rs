//! The containers of the manifests in `deploy` run commands that the project's own image has and this program
//! takes, with variables that it reads. Templates of the Helm chart are covered by what is rendered from them.

use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _, Parser as _};
use serde_json::Value;

use crate::cli::Cli;

/// Where `scripts/package-image.sh` puts the program.
const PROGRAM: &str = "/soci";

/// The manifests below a folder.
fn manifests(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("templates") {
            found.extend(manifests(&path));
        } else if path.extension().is_some_and(|end| end == "yaml") {
            found.push(path);
        }
    }
    found
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy")
}

fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lists and tables below a value, itself included.
fn all(value: &Value) -> Vec<&Value> {
    let below: Vec<&Value> = match value {
        Value::Array(items) => items.iter().collect(),
        Value::Object(fields) => fields.values().collect(),
        _ => return Vec::new(),
    };
    let below = below.into_iter().flat_map(all);
    std::iter::once(value).chain(below).collect()
}

fn words(value: &Value) -> Vec<String> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    let words = items.iter().map(|word| word.as_str().unwrap().to_owned());
    words.collect()
}

/// Variables with their values.
type Variables = Vec<(String, String)>;

/// The commands of containers, with their arguments and variables, and of probes.
fn commands(document: &Value) -> Vec<(Vec<String>, Variables)> {
    let with_command = all(document)
        .into_iter()
        .filter(|value| value["command"].is_array());
    let command = |value: &Value| {
        let mut command = words(&value["command"]);
        command.extend(words(&value["args"]));
        let variables = value["env"].as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let variables = variables.map(|one| (text(&one["name"]), text(&one["value"])));
        (command, variables.collect())
    };
    with_command.map(command).collect()
}

/// What a kustomization adds to the arguments of its base.
fn added(kustomization: &Value) -> Vec<String> {
    let patches = kustomization["patches"].as_array().into_iter().flatten();
    let changes = patches.flat_map(|patch| {
        let text = patch["patch"].as_str().unwrap_or_default();
        serde_saphyr::from_str::<Vec<Value>>(text).unwrap()
    });
    let added = changes.map(|change| {
        assert_eq!(change["op"], "add", "{change}");
        let path = change["path"].as_str().unwrap();
        assert!(path.ends_with("/containers/0/args/-"), "{path}");
        change["value"].as_str().unwrap().to_owned()
    });
    added.collect()
}

/// The flag that a variable stands for, among those of a command and all below it.
fn flag_of(command: &Command, variable: &str) -> Option<String> {
    let own = command
        .get_arguments()
        .find(|argument| argument.get_env().is_some_and(|name| name == variable))
        .and_then(|argument| argument.get_long())
        .map(ToOwned::to_owned);
    own.or_else(|| {
        command
            .get_subcommands()
            .find_map(|below| flag_of(below, variable))
    })
}

/// Why a command of a container does not work.
fn defect(command: &[String], variables: &[(String, String)]) -> Option<String> {
    let (program, arguments) = command.split_first()?;
    if program != PROGRAM {
        return Some(format!("the image has {PROGRAM}, not {program}"));
    }
    let mut arguments = arguments.to_vec();
    for (name, value) in variables {
        match flag_of(&Cli::command(), name) {
            Some(flag) => arguments.push(format!("--{flag}={value}")),
            None if name.starts_with("SOCI_") => return Some(format!("{name} is not read")),
            None => {}
        }
    }
    let error = Cli::try_parse_from(std::iter::once("soci".to_owned()).chain(arguments)).err()?;
    Some(error.to_string())
}

#[test]
fn every_command_in_the_manifests_is_one_of_this_program() {
    let (mut count, mut wrong) = (0, Vec::new());
    for path in manifests(&deploy()) {
        // Neither is one of Kubernetes: the second has tags of its own.
        if path.ends_with("values.yaml") || path.ends_with("cloudformation.yaml") {
            continue;
        }
        for document in documents(&path) {
            let mut commands = commands(&document);
            let added = added(&document);
            if !added.is_empty() {
                let base = path.with_file_name("../base/statefulset.yaml");
                let base = documents(&base).iter().flat_map(self::commands).next();
                let (mut command, variables) = base.unwrap();
                command.extend(added);
                commands.push((command, variables));
            }
            for (command, variables) in commands {
                count += 1;
                if let Some(defect) = defect(&command, &variables) {
                    wrong.push(format!("{}: {command:?}\n  {defect}", path.display()));
                }
            }
        }
    }
    assert!(count >= 6, "only {count} commands were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The arguments of the function of AWS Lambda are variables alone.
#[test]
fn every_variable_of_the_index_builder_in_deploy_is_read() {
    let command = Cli::command();
    let (mut count, mut wrong) = (0, Vec::new());
    for path in manifests(&deploy()) {
        let text = std::fs::read_to_string(&path).unwrap();
        let part = |character: char| !character.is_ascii_uppercase() && character != '_';
        for name in text.split(part) {
            // Its words are put onto the command line by the function's `bootstrap`.
            if !name.starts_with("SOCI_INDEX_BUILDER_") || name == "SOCI_INDEX_BUILDER_ARGS" {
                continue;
            }
            count += 1;
            if flag_of(&command, name).is_none() {
                wrong.push(format!("{}: {name}", path.display()));
            }
        }
    }
    assert!(count >= 8, "only {count} variables were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
