# How long and how much is kept, from .env: read and judged in one place, since what sets Elasticsearch up and what deletes
# there go by the same values. A wrong one is told here, not by Elasticsearch in its words. Sourced; needs `fail` of call.sh.
#
#   LOGS_RETENTION, LOGS_RETENTION_SIZE, LOGS_ROLLOVER_SIZE              see .env.example
#   TRACES_RETENTION_DAYS, TRACES_RETENTION_SIZE, TRACES_ROLLOVER_SIZE
# shellcheck shell=sh disable=SC2034 # the script that sources it uses them
number_with() { # NAME VALUE UNITS...
    name=$1 value=$2
    shift 2
    for unit; do
        digits=${value%"$unit"}
        case $value in *"$unit") ;; *) continue ;; esac
        case $digits in '' | 0* | *[!0-9]* | ???????*) ;; *) return 0 ;; esac
    done
    fail ".env: $name: expected a number with one of ${*:-no unit}, found '$value'"
}

bytes() { # SIZE: print it as Elasticsearch counts, by 1024
    case $1 in
    *mb) echo $((${1%mb} << 20)) ;;
    *gb) echo $((${1%gb} << 30)) ;;
    *tb) echo $((${1%tb} << 40)) ;;
    esac
}

# The index that is written to cannot be deleted, so what is kept would swing between the bound and next to nothing.
at_most_half() { # NAME VALUE WHOLE ITS_VALUE
    [ "$(bytes "$2")" -le $(($(bytes "$4") / 2)) ] ||
        fail ".env: $1: expected at most half of $3 ($4), found '$2'"
}

logs_retention=${LOGS_RETENTION:-7d}
logs_retention_size=${LOGS_RETENTION_SIZE:-30gb}
logs_rollover_size=${LOGS_ROLLOVER_SIZE:-10gb}
traces_retention_days=${TRACES_RETENTION_DAYS:-7}
traces_retention_size=${TRACES_RETENTION_SIZE:-60gb}
traces_rollover_size=${TRACES_ROLLOVER_SIZE:-10gb}
number_with LOGS_RETENTION "$logs_retention" d h
number_with LOGS_RETENTION_SIZE "$logs_retention_size" tb gb mb
number_with LOGS_ROLLOVER_SIZE "$logs_rollover_size" gb mb
number_with TRACES_RETENTION_DAYS "$traces_retention_days" ''
number_with TRACES_RETENTION_SIZE "$traces_retention_size" tb gb mb
number_with TRACES_ROLLOVER_SIZE "$traces_rollover_size" gb mb
at_most_half LOGS_ROLLOVER_SIZE "$logs_rollover_size" LOGS_RETENTION_SIZE "$logs_retention_size"
at_most_half TRACES_ROLLOVER_SIZE "$traces_rollover_size" TRACES_RETENTION_SIZE "$traces_retention_size"
