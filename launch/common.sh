# Shell functions that the launch scripts share. Sourced by them, not run.
# shellcheck shell=bash

DRY_RUN=false # the option --dry-run makes it true

# A text without what would end its line or move on the terminal.
one_line() {
    local LC_ALL=C text=$1
    text=${text//$'\n'/\\n}
    printf '%s' "${text//[[:cntrl:]]/?}"
}

# End with one line; 2 is the status of what the user can mend, as in the program.
die() {
    printf 'error: %s\n' "$(one_line "$*")" >&2
    exit 2
}

# Print the arguments as one line that bash reads back as the same arguments.
quote() {
    local line
    printf -v line ' %q' "$@"
    printf '%s\n' "${line# }"
}

# Execute a command, or with --dry-run print it.
run() {
    if $DRY_RUN; then
        quote "$@"
    else
        "$@"
    fi
}

# A remark within the output of --dry-run, which stays a shell script with it.
remark() {
    if $DRY_RUN; then
        printf '# %s\n' "$(one_line "$*")"
    fi
}

# Print the head of a script: what it is, and its settings.
show_help() {
    sed -e 1d -e '/^set -euo pipefail$/,$d' -e 's/^# \{0,1\}//' "$1"
}

# need NAME EXAMPLE: refuse to go on while the setting NAME is empty.
need() {
    [[ -n ${!1} ]] || die "$1 is not set; $1=$2 would work"
}

# need_number NAME EXAMPLE: refuse a setting that is no whole number above 0.
need_number() {
    [[ ${!1} =~ ^[1-9][0-9]*$ ]] || die "$1=${!1} is no whole number above 0; $1=$2 would work"
}

# need_switch NAME: refuse a setting that is neither true nor false.
need_switch() {
    [[ ${!1} == true || ${!1} == false ]] || die "$1=${!1} is neither true nor false"
}

# need_name NAME EXAMPLE: refuse a setting that no cloud takes for a name, and that a command may take for an option.
need_name() {
    [[ ${!1} =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
        die "$1=${!1} is no name of small letters, digits and inner hyphens; $1=$2 would work"
}

# need_unicode WHAT TEXT: refuse a text that is no UTF-8, which YAML cannot carry.
need_unicode() {
    local LC_ALL=C next=$'[\x80-\xbf]' one
    one=$'[\x01-\x7f]|[\xc2-\xdf]'$next$'|\xe0[\xa0-\xbf]'$next$'|[\xe1-\xec\xee\xef]'$next$next$'|\xed[\x80-\x9f]'$next
    one+=$'|\xf0[\x90-\xbf]'$next$next$'|[\xf1-\xf3]'$next$next$next$'|\xf4[\x80-\x8f]'$next$next
    [[ $2 =~ ^($one)*$ ]] || die "$1 $(quote "$2") is no UTF-8, which YAML cannot carry; give it another name"
}

# A path that no command takes for an option.
as_path() {
    [[ $1 == -* ]] && printf './'
    printf '%s' "$1"
}

# The value of --workdir among the arguments of the program; nothing if there is none.
workdir_of() {
    while (($#)); do
        case $1 in
            --workdir=*)
                printf '%s\n' "${1#*=}"
                return
                ;;
            --workdir)
                printf '%s\n' "${2-}"
                return
                ;;
        esac
        shift
    done
}

# Refuse to start the program without a workdir.
need_workdir() {
    [[ -n $(workdir_of "$@") ]] ||
        die "--workdir is missing; -- --config=configs/digits.py --workdir=FOLDER would work"
}

# read_command 'SUB COMMANDS' ARGUMENTS...: sets `action` to the sub-command, DRY_RUN and SPOT by their options, and
# the array `program` to what follows --.
# shellcheck disable=SC2034 # the scripts that source this file read them
read_command() {
    local known=$1
    shift
    action='' program=()
    while (($#)); do
        case $1 in
            --help) show_help "$0" && exit ;;
            --dry-run) DRY_RUN=true ;;
            --spot) SPOT=true ;;
            --)
                shift
                program=("$@")
                break
                ;;
            *)
                [[ " $known " == *" $1 "* ]] ||
                    die "$1 is no option of this script; --help lists them, and those of the program follow --"
                [[ -z $action ]] || die "$action and $1 are two sub-commands; give one"
                action=$1
                ;;
        esac
        shift
    done
    [[ -n $action ]] || die "a sub-command is missing; there are: $known"
}
