# How the scripts here and in kibana/ ask: who they are, one call, what was answered. A password is read from its file into
# curl's configuration, and stands in no argument, no environment and no output.
#
#   SECRETS   folder of the passwords, /run/secrets
# shellcheck shell=sh disable=SC2154 # program, url, work and deadline are those of the script that sources it
secrets=${SECRETS:-/run/secrets}

fail() {
    echo "$program: $*" >&2
    exit 1
}

replaced() { # TEXT MARK VALUE: print the text with each mark replaced
    left=$1 made=
    while :; do
        case $left in
        *"$2"*) made=$made${left%%"$2"*}$3 left=${left#*"$2"} ;;
        *) break ;;
        esac
    done
    printf '%s' "$made$left"
}

quoted() { # TEXT: print it for between the quotes of JSON or of curl's configuration
    text=$(replaced "$1" '\' '\\')
    replaced "$text" '"' '\"'
}

secret() { # NAME: print a password
    [ -r "$secrets/$1" ] || fail "$secrets/$1: expected a file that can be read, found none"
    IFS= read -r password <"$secrets/$1" || [ -n "$password" ] || fail "$secrets/$1: expected a password, found nothing"
    case $password in *[[:cntrl:]]*) fail "$secrets/$1: expected text, found control characters" ;; esac
    printf '%s' "$password"
}

log_in() { # USER SECRET: all calls from here on are this user's
    who=$1 password=$(secret "$2")
    printf 'user = "%s:%s"\n' "$who" "$(quoted "$password")" >"$work/login"
}

call() { # SECONDS CURL'S ARGUMENTS...: sets status, and leaves the answer in $work/answer
    seconds=$1
    shift
    : >"$work/answer"
    status=$(curl --config "$work/login" --silent --noproxy '*' --max-time "$seconds" --output "$work/answer" \
        --write-out '%{http_code}' "$@") || status=000
}

told() { # the answer, in one line, never with a password
    answer=$(tr '\n' ' ' <"$work/answer" | cut -c 1-500)
    for file in "$secrets"/es_*_password; do
        IFS= read -r password <"$file" || [ -n "$password" ] || continue
        case $answer in *"$password"*) answer='an answer that is not shown, since it holds a password' ;; esac
    done
    [ "$status" = 000 ] && answer="no answer from $url"
    printf '%s: %s' "$status" "$answer"
}

not_ready() { # WHO: it was waited for long enough
    [ "$status" = 401 ] && fail "$1 refuses the password of user $who, for $deadline s: was it changed" \
        "elsewhere than in secrets/es_elastic_password?"
    fail "$1 is not ready after $deadline s: $(told)"
}
