#!/usr/bin/env bash
# What cluster.yaml needs in an AWS account, once: a bucket for studies and what they read; a file system (EFS) for
# MLflow's database, which only the head reaches, with an end in each of its zones; two roles, of which the workers' can
# only read and write the bucket; security groups: of all nodes, which lets one address in, by SSH; of the head, which
# the file system lets in; of the file system.
#
#   deploy/aws.sh 203.0.113.7/32                   the address that you come from
#   deploy/aws.sh 203.0.113.7/32 YOUR-PICTURES     and a bucket of yours that the nodes may read, with ImageNet perhaps
#
# Run it again to add an address, such a bucket or a zone. The default VPC is used: with several VPCs, name the same one's
# SubnetIds in cluster.yaml.
set -euo pipefail
address=${1:?your address, such as 203.0.113.7/32} pictures=${2:-} group=cca-ray
if [[ $address == *:* || $address != */* || $address == */0 ]]; then
    echo "error: $address: want an IPv4 address with the length of its network, such as 203.0.113.7/32" >&2
    exit 2
fi
of_provider() { sed -n "s/^  $1: \([^ ]*\).*/\1/p" "$(dirname "$0")/../cluster.yaml"; }
AWS_DEFAULT_REGION=$(of_provider region) zones=$(of_provider availability_zone)
export AWS_DEFAULT_REGION AWS_PAGER=""
account=$(aws sts get-caller-identity --query Account --output text)

# An incomplete upload is what a node leaves that was killed in the middle of one. Anyone can tell the bucket's name, and
# may have made it: then it is not ours, and cannot be created.
bucket=$group-$account-$AWS_DEFAULT_REGION owner=(--expected-bucket-owner "$account")
if ! aws s3api head-bucket --bucket "$bucket" "${owner[@]}" >/dev/null 2>&1; then
    there=(--create-bucket-configuration "LocationConstraint=$AWS_DEFAULT_REGION")
    [[ $AWS_DEFAULT_REGION != us-east-1 ]] || there=()
    if ! aws s3api create-bucket --bucket "$bucket" "${there[@]}" >/dev/null; then
        echo "error: the bucket $bucket could not be made; if another account has it, nothing must be kept there" >&2
        exit 1
    fi
fi
aws s3api put-public-access-block --bucket "$bucket" "${owner[@]}" --public-access-block-configuration \
    BlockPublicAcls=true,IgnorePublicAcls=true,BlockPublicPolicy=true,RestrictPublicBuckets=true
aws s3api put-bucket-lifecycle-configuration --bucket "$bucket" "${owner[@]}" --lifecycle-configuration '{"Rules": [
    {"ID": "uploads", "Status": "Enabled", "Filter": {"Prefix": ""},
     "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}]}' >/dev/null

may() {  # role, bucket, what may be done with its objects, under which condition, and what may not
    aws iam put-role-policy --role-name "$1" --policy-name "$2" --policy-document '{
        "Version": "2012-10-17", "Statement": [
            {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::'"$2"'"'"${4:-}"'},
            {"Effect": "Allow", "Action": ['"$3"'], "Resource": "arn:aws:s3:::'"$2"'/*"'"${4:-}"'}'"${5:-}"']}'
}
ours=', "Condition": {"StringEquals": {"aws:ResourceAccount": "'$account'"}}'
# What MLflow keeps is code to whoever loads a champion: only the head, where its server is, writes it.
keep_mlflow=', {"Effect": "Deny", "Action": ["s3:PutObject", "s3:DeleteObject"],
                "Resource": "arn:aws:s3:::'$bucket'/mlflow/*"}'
by_ec2='{"Version": "2012-10-17", "Statement": [
    {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'
for role in $group-head $group-worker; do
    if ! aws iam get-role --role-name "$role" >/dev/null 2>&1; then
        aws iam create-role --role-name "$role" --assume-role-policy-document "$by_ec2" >/dev/null
        aws iam create-instance-profile --instance-profile-name "$role" >/dev/null
        aws iam add-role-to-instance-profile --instance-profile-name "$role" --role-name "$role"
    fi
    denied=$keep_mlflow
    [[ $role != "$group-head" ]] || denied=
    may "$role" "$bucket" '"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"' "$ours" "$denied"
    [[ -z $pictures ]] || may "$role" "$pictures" '"s3:GetObject"'
done
aws iam put-role-policy --role-name $group-head --policy-name nodes --policy-document '{
    "Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Resource": "*", "Action": ["ec2:RunInstances", "ec2:Describe*", "ssm:GetParameters"]},
        {"Effect": "Allow", "Action": "ec2:CreateTags", "Resource": "*",
         "Condition": {"StringEquals": {"ec2:CreateAction": "RunInstances"}}},
        {"Effect": "Allow", "Action": ["ec2:CreateTags", "ec2:TerminateInstances"], "Resource": "*",
         "Condition": {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": "cca-ray"}}},
        {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::'"$account"':role/'$group'-worker"}]}'
aws iam create-service-linked-role --aws-service-name spot.amazonaws.com >/dev/null 2>&1 || true  # there already

vpc=$(aws ec2 describe-vpcs --filters Name=is-default,Values=true --query 'Vpcs[0].VpcId' --output text)
of_vpc="Name=vpc-id,Values=$vpc"
security_group() {  # name, and what it is for; says its id
    local id
    id=$(aws ec2 describe-security-groups --filters "$of_vpc" "Name=group-name,Values=$1" \
        --query 'SecurityGroups[0].GroupId' --output text) || return
    [[ $id != None ]] || id=$(aws ec2 create-security-group --group-name "$1" --description "cca_ray: $2" \
        --vpc-id "$vpc" --query GroupId --output text) || return
    echo "$id"
}
let_in() {  # a group, and whom; nothing is wrong if they are let in already
    local said
    if ! said=$(aws ec2 authorize-security-group-ingress --group-id "$@" 2>&1 >/dev/null) &&
        [[ $said != *InvalidPermission.Duplicate* ]]; then
        echo "error: $said" >&2
        exit 1
    fi
}
nodes=$(security_group $group "among the nodes, and SSH")
head=$(security_group $group-head "the head, which the file system lets in")
ends=$(security_group $group-files "the file system, NFS from the head")
let_in "$nodes" --protocol=-1 --source-group "$nodes"
let_in "$nodes" --protocol tcp --port 22 --cidr "$address"
let_in "$ends" --protocol tcp --port 2049 --source-group "$head"

of_efs() { aws efs describe-file-systems --query "FileSystems[?CreationToken=='$group'] | [0].$1" --output text; }
files=$(of_efs FileSystemId)
if [[ $files == None ]]; then
    files=$(aws efs create-file-system --creation-token $group --encrypted --throughput-mode elastic \
        --tags Key=Name,Value=$group --query FileSystemId --output text)
fi
until [[ $(of_efs LifeCycleState) == available ]]; do sleep 2; done
there=$(aws efs describe-mount-targets --file-system-id "$files" --query 'MountTargets[].[SubnetId,MountTargetId]' \
    --output text)
subnets=$(aws ec2 describe-subnets --filters "$of_vpc" Name=default-for-az,Values=true \
    "Name=availability-zone,Values=$zones" --query 'Subnets[].SubnetId' --output text)
for subnet in $subnets; do
    [[ $there == *"$subnet"* ]] || aws efs create-mount-target --file-system-id "$files" --subnet-id "$subnet" \
        --security-groups "$ends" >/dev/null
done
while read -r _ end; do  # earlier versions let in all nodes
    [[ -z $end ]] || aws efs modify-mount-target-security-groups --mount-target-id "$end" --security-groups "$ends"
done <<<"$there"
echo "roles $group-head and $group-worker, bucket $bucket, file system $files, security groups $nodes (nodes), $head (head)"
echo "and $ends (file system). Tell cluster.yaml:"
echo "sed -i.bak 's/YOUR-BUCKET/$bucket/; s/YOUR-FILES/$files/; s/YOUR-NODES/$nodes/; s/YOUR-HEAD/$head/' cluster.yaml"
