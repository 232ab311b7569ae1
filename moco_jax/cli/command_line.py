"""Shared by all commands: flags, help, subcommands, and how a command ends.

A module of `cli/` makes a `Command` of its docstring, its flags and what is to be done. Flags are
defined when the command starts, in a set of their own, so that modules can be imported together and
commands can follow each other in one process. Help and errors in flags need neither JAX nor
TensorFlow; a command imports them where its work begins.
"""

import contextlib
import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from moco_jax import config as config_lib
from moco_jax.base import allocator, endings
from moco_jax.base.errors import TRY_AGAIN, LockLost, UserError
from moco_jax.base.text import printable
from moco_jax.cli import number_flags
from moco_jax.config import recipe_files
from moco_jax.config import settings as settings_lib
from moco_jax.parallel import failures, xla_flags

# `--config.epochs=2.0` is 2, as in a recipe file; 2.5 is refused, not cut.
config_flags.register_flag_parser_for_type(int, number_flags.NumberParser(int))

SETTINGS = tuple(settings_lib.SETTINGS)
HELP = {"-h", "-help", "--help", "--helpshort", "--helpfull"}

Define = Callable[[flags.FlagValues], None]
Main = Callable[[flags.FlagValues, list[str]], None]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command or subcommand: its help, its flags, and its work.

    Attributes:
        about: what `--help` prints first: in a line what the command does, then commands to copy.
        define: defines the command's flags in the set that it gets.
        main: does the work, by the flags' values and the words that are no flags; None where a
            subcommand must be named.
        settings: the names that `--config.NAME` may have.
        settings_with: of a recipe, where they depend on it; None: `settings` are those of all.
        subcommands: name -> command; a word of the command line chooses one.
        missing: the error where no subcommand is named and `main` is None.
    """

    about: str
    define: Define = lambda given: None
    main: Main | None = None
    settings: Sequence[str] = ()
    settings_with: Callable[[ConfigDict], Sequence[str]] | None = None
    subcommands: Mapping[str, "Command"] = dataclasses.field(default_factory=dict)
    missing: str = ""

    @property
    def line(self) -> str:
        """The first line of the help, which says what the command does."""
        return self.about.strip().splitlines()[0]

    def start(self) -> None:
        """Run the command line of this process; what a user can mend ends it with one line."""
        command, argv = self.chosen(sys.argv)
        if HELP & set(argv[1:]):
            print(command.help())
            return
        app.run(lambda parsed: guarded(command.work, *parsed), argv, flags_parser=command.parse)

    def call(self, argv: Sequence[str]) -> None:
        """Run the command line `argv`, the program's name first, in a process that goes on."""
        with _as_command_line_of_the_process(argv):
            command, rest = self.chosen(argv)
            guarded(command.work, *command.parse(rest))

    def work(self, given: flags.FlagValues, words: list[str]) -> None:
        """Do the work of the command."""
        assert self.main is not None  # `parse` has refused
        self.main(given, words)

    def chosen(self, argv: Sequence[str]) -> tuple["Command", list[str]]:
        """Return the subcommand that `argv` names, and `argv` without it; else this command."""
        for place, word in enumerate(argv[1:], start=1):
            command = self.subcommands.get(word)
            # `--out knn linear` evaluates linear: the word before 'knn' is a flag that takes it.
            if command is not None and not _takes_a_value(command.own_flags(), argv[place - 1]):
                return command, [*argv[:place], *argv[place + 1 :]]
        return self, list(argv)

    def own_flags(self) -> flags.FlagValues:
        """Define the command's flags in a new set, at their defaults, and return the set."""
        given = flags.FlagValues()
        help_text = "Show where in the program an error comes from."
        flags.DEFINE_bool("debug", False, help_text, given)
        self.define(given)
        return given

    def parse(self, argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
        """Parse `argv` to flags with their values, and the words that are no flags.

        Recipes are given by name or file. Anything wrong ends the program with one line.
        """
        if self.main is None:
            fail(self.missing)
        given = self.own_flags()
        # The flags of absl itself, as --verbosity, are taken too; app.run reads them.
        for flag in absl_flags():
            flag.unparse()
            given[flag.name] = flag
        try:
            if self.settings:
                config_lib.check_names(argv[1:], self._names(argv))
            words = given([argv[0], *map(recipe_files.resolve, argv[1:])])
        except (UserError, flags.Error) as error:
            # A config file that raises is reported by its library with the whole traceback as text.
            fail(error, " ".join(str(error).split()).rpartition("UserError: ")[2])
        except Exception as error:
            # A recipe is a program of the user's own, and may end in any way.
            fail(error, f"{_recipe(argv)} cannot be read: {type(error).__name__}: {error}")
        flags.FLAGS.mark_as_parsed()
        return given, words[1:]

    def _names(self, argv: Sequence[str]) -> Sequence[str]:
        """Return the names that `--config.NAME` may have with the recipe that `argv` names."""
        places = [n for n, word in enumerate(argv) if re.match("--?config(=|$)", word)]
        if self.settings_with is None or not places:
            return self.settings
        # `--config FILE` are two words, `--config=FILE` is one.
        named = argv[places[-1] :][: 1 if "=" in argv[places[-1]] else 2]
        # The recipe alone: its library looks for changes in the command line of the process.
        line = [argv[0], *map(recipe_files.resolve, named)]
        alone = self.own_flags()
        with _as_command_line_of_the_process(line):
            alone(line)
        return self.settings_with(alone["config"].value)

    def help(self) -> str:
        """Return the text of `--help`: what the command does, subcommands, flags and settings."""
        lines = [self.about.strip(), ""]
        if self.subcommands:
            lines += ["subcommands, each with its own --help:", *listing(self.subcommands), ""]
        if self.main is None:
            return "\n".join(lines[:-1])
        ours = self.own_flags()
        lines.append("flags:")
        for name in sorted(ours):
            flag = ours[name]
            plain = flag.default in (None, "", [], False)
            default = "" if plain else f" (default {flag.default_as_str})"
            lines.append(f"  --{name}: {' '.join((flag.help or '').split())}{default}")
        if "config" in ours:
            first = next(s for s in self.settings if s.rpartition(".")[2] in SETTINGS)
            prefix = first.rpartition(".")[0]
            name = f"{prefix}.NAME" if prefix else "NAME"
            lines += [
                "",
                f"settings, as --config.{name}=VALUE; a recipe changes some of the defaults:",
            ]
            lines += settings_lib.overview()
        return "\n".join(lines)


def listing(commands: Mapping[str, Command]) -> list[str]:
    """Format a line for each of `commands`: its name, and what it does."""
    width = max(map(len, commands))
    return [f"  {name:{width}}  {command.line}" for name, command in commands.items()]


def absl_flags() -> list[flags.Flag]:
    """Return the flags that absl defines for every program, as --verbosity."""
    known = flags.FLAGS.flags_by_module_dict().items()
    return [flag for module, some in known if module.startswith("absl.") for flag in some]


def define_config(given: flags.FlagValues, help_text: str) -> None:
    """Define `--config`, a recipe by name or file whose settings `--config.NAME` changes."""
    config_flags.DEFINE_config_file("config", None, help_text, given)


def _takes_a_value(given: flags.FlagValues, word: str) -> bool:
    """Return whether `word` is a flag of `given` whose value is the next word of a command line."""
    name = word.lstrip("-")
    return word.startswith("-") and name in given and not given[name].boolean


def _recipe(argv: Sequence[str]) -> str:
    """Return the word of a command line that names its recipe or file of flags."""
    words = (word for word in argv[1:] if word.lstrip("-").startswith(("config=", "flagfile=")))
    return next(words, "the command line")


@contextlib.contextmanager
def _as_command_line_of_the_process(argv: Sequence[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, list(argv)
    try:
        yield
    finally:
        sys.argv = before


def guarded(work: Callable[..., None], *arguments: Any) -> None:
    """Call `work`; some errors end the program with one line and a status of their own.

    They are Ctrl-C (130), what passes by itself (75), and what a user can mend (2). Of several
    processes one that fails alone tells the others first, and they end too.
    """
    # Before anything asks JAX for its devices.
    xla_flags.set_up()
    allocator.keep_freed_memory()
    try:
        work(*arguments)
    except SystemExit:
        raise
    except BaseException as error:
        _end_with(error)


def _end_with(error: BaseException) -> None:
    """End the program because of `error`; what is a bug, or comes with --debug, is raised."""
    if isinstance(error, LockLost):
        failures.tell(error)
        print(f"error: {error}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(TRY_AGAIN)  # at once: threads that save would go on while Python ends
    # Of several processes one that fails alone ends here, and with it all others.
    failures.leave(error)
    known = endings.of(error)
    if isinstance(error, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.exit(endings.STOPPED)
    if known is None or "--debug" in sys.argv:
        raise error
    status, line = known
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)


def fail(error: object, line: str = "") -> NoReturn:
    """End with status 2 and one line: `line`, or else what `error` says.

    With --debug an `error` that is an exception is raised, so that its trace is seen.
    """
    if isinstance(error, BaseException) and "--debug" in sys.argv:
        raise error
    # The last resort for what a message quotes: whatever it is, it stays one line, and prints.
    print(f"error: {printable(line or str(error))}", file=sys.stderr)
    sys.exit(2)


def refuse_words(words: Sequence[str]) -> None:
    """End with one line where there are `words` that are no flags."""
    if words:
        fail(f"{words[0]!r} is no flag; settings are given as --config.NAME=VALUE")


def require_recipe_and_workdir(given: flags.FlagValues, recipe: str) -> None:
    """End with one line where --config or --workdir is left out; `recipe`: what --config may be."""
    flags_of = {f"--config={recipe}": given.config, "--workdir=FOLDER": given.workdir or None}
    lacking = [flag for flag, value in flags_of.items() if value is None]
    if lacking:
        verb = "are" if len(lacking) > 1 else "is"
        fail(f"{' and '.join(lacking)} {verb} needed; --help lists all flags")
